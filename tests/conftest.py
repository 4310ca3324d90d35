"""What all tests share: the options, and one browser a process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
BROWSER_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

# Small nets gain nothing from threads, and lose much where tests run beside each other. Torch reads this when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui",
        metavar="URL",
        default=None,
        help="run tests/e2e against this running WebUI (with --api, the extension, and the files of "
        "tests/sample_models.py for its checkpoint) instead of the stand-in",
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium: `CHROMIUM`, the system's, or the one that Playwright installed.

    One for all tests of a process, because Playwright's synchronous driver starts only once in a thread.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    system = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, BROWSERS) if path), None)
    with playwright.sync_playwright() as driver:
        executable = system or driver.chromium.executable_path
        if not Path(executable).is_file():
            pytest.skip("no Chromium: install the system's, or set CHROMIUM")
        opened = driver.chromium.launch(executable_path=executable, args=list(BROWSER_FLAGS))
        yield opened
        opened.close()
