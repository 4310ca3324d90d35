"""One stand-in host per test process; its flavour is that of the installed gradio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.webui.toys import record as toy_record

if TYPE_CHECKING:
    from tests.webui.as_found import Around
    from tests.webui.prompting import Prompting

REPOSITORY = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).resolve().parent / "toys"


@pytest.fixture(scope="session")
def host_extensions() -> list[Path]:
    """Extensions of the session's host, in load order: the toy scripts, then this repository."""
    return [TOYS / "broken", TOYS / "recorder", REPOSITORY]


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory, host_extensions: list[Path]) -> Iterator[object]:
    """The session's host with one checkpoint, `sd15`; `standin.select(kind)` makes and loads others."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    pytest.importorskip("ldm", reason="the ldm UNet (stable-diffusion-sdkit) is not installed")
    from tests.webui.standin import StandIn

    host = StandIn(extensions=host_extensions, data_dir=tmp_path_factory.mktemp("host"))
    yield host
    host.stop_serving()


@pytest.fixture
def clean_host(standin):
    """The host with its settings, scripts' records and reports as they were at the start of the session."""
    from modules import sd_models, sd_unet, shared

    before = dict(shared.opts.data)
    standin.reports.clear()
    toy_record.clear()
    yield standin
    shared.opts.data.clear()
    shared.opts.data.update(before)
    sd_unet.current_unet = None
    sd_models.reload_model_weights()
    standin.reports.clear()


@pytest.fixture
def prompting(clean_host, monkeypatch: pytest.MonkeyPatch) -> Prompting:
    """The host with sample models, ready for jobs with image prompts."""
    from tests.webui.prompting import Prompting

    return Prompting(clean_host, monkeypatch)


@pytest.fixture
def around(prompting: Prompting) -> Around:
    """`around(job)` runs a job and checks that the host is as it was before."""
    from tests.webui.as_found import Around

    return Around(prompting)


@pytest.fixture
def record(clean_host) -> toy_record.Record:
    """What the toy extension saw in this test."""
    return toy_record.record
