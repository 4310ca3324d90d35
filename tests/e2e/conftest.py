"""The WebUI that e2e tests talk to, the one named with --webui, otherwise a stand-in started for them; and its page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.page_driver import PATIENCE_MS, Accordion
from tests.e2e.serving import ANNOUNCEMENT, REPOSITORY


@pytest.fixture(scope="session")
def webui_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running WebUI with this extension and `tests.sample_models`' files."""
    url = request.config.getoption("--webui")
    if url is not None:
        yield url.rstrip("/")
        return
    pytest.importorskip("gradio", reason="gradio is not installed")
    pytest.importorskip("ldm", reason="the ldm UNet (stable-diffusion-sdkit) is not installed")
    folder = tmp_path_factory.mktemp("webui")
    # A process of its own: module names are global, and the page must stay responsive while tests wait for it.
    with (folder / "server.log").open("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.serving", str(folder / "data")],
            cwd=REPOSITORY,
            env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            yield _address(server, folder / "server.log")
        finally:
            server.terminate()
            server.wait(30)


def _address(server: subprocess.Popen[str], log: Path) -> str:
    """What the server announces; its log is the failure's text when it ends before that."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(ANNOUNCEMENT):
            return line.removeprefix(ANNOUNCEMENT).strip()
    raise AssertionError(f"the stand-in did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")


@pytest.fixture
def page(browser: Any, webui_url: str) -> Iterator[Any]:
    """A fresh page of the WebUI; nothing outside it can be reached, and no script may fail on it."""
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(webui_url) else route.abort())
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(webui_url)
    opened.wait_for_selector("#txt2img_ipadapter-visible-checkbox", timeout=6 * PATIENCE_MS)
    yield opened
    context.close()
    assert [error for error in errors if "ipadapter" in error.lower()] == []


@pytest.fixture
def accordion(page: Any) -> Accordion:
    """The txt2img accordion, opened."""
    opened = Accordion(page)
    opened.open()
    return opened
