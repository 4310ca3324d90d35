"""Never silent: what cannot be done stops the job before its first step with a sentence, or goes on with a warning."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_ipadapter.core.adapter import Adapter
from lib_ipadapter.encoders.clip_vision import VisionEncoder
from lib_ipadapter.hosts.forge import OptionsReader
from lib_ipadapter.hosts.rows import SequenceReader
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.session import features, passes, planning, prepare
from lib_ipadapter.session.models import Models
from tests.webui.prompting import BLUE, GREEN, RED, WARNING, Prompting

UNIT = {"images": [RED], "weight": 0.8}
BEFORE_SAMPLING: dict[str, tuple[Any, str]] = {
    "reading the reference": (prepare, "decode_reference"),
    "opening the picture": (features, "open_picture"),
    "looking at the checkpoint": (planning, "find_cross_attention"),
    "scanning the folders": (Models, "refresh"),
    "choosing the files": (Models, "choose"),
    "loading the encoder": (features, "load_vision_encoder"),
    "encoding": (VisionEncoder, "forward"),
    "loading the adapter": (prepare, "load_adapter"),
    "projecting": (Adapter, "project"),
    "computing keys and values": (Adapter, "layer_kv"),
}
WHILE_SAMPLING: dict[str, list[tuple[Any, str]]] = {
    "attaching": [(passes, "attach")],
    "a callback of a step": [(SequenceReader, "begin_step"), (OptionsReader, "begin_step")],
    "reading the rows": [(SequenceReader, "__call__"), (OptionsReader, "__call__")],
}
ERRORS: dict[str, tuple[Callable[[], Exception], int]] = {
    "unforeseen": (lambda: RuntimeError("told to fail"), 500),
    "foreseen": (lambda: AdapterFileError("a.safetensors was told to fail. Download it again."), 422),
    "out of memory": (lambda: torch.cuda.OutOfMemoryError("told to fail"), 422),
}


def break_at(prompting: Prompting, places: list[tuple[Any, str]], error: Exception) -> None:
    from lib_ipadapter.webui.process import services

    services().cache.clear()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    for owner, name in places:
        prompting.patch.setattr(owner, name, fail)


def go_on_after_failures() -> None:
    from modules import shared

    shared.opts.set("ipadapter_on_failure", "continue with a warning")


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("stage", BEFORE_SAMPLING)
def test_each_stage_stops_the_job_before_the_first_step(prompting: Prompting, stage: str, kind: str) -> None:
    make, status = ERRORS[kind]
    break_at(prompting, [BEFORE_SAMPLING[stage]], make())
    sentence = prompting.refused(UNIT, status=status)
    assert ("memory" if kind == "out of memory" else "told to fail") in sentence


@pytest.mark.parametrize("kind", ["foreseen", "unforeseen"])
@pytest.mark.parametrize("stage", WHILE_SAMPLING)
def test_what_fails_in_a_callback_is_raised_by_the_unet(prompting: Prompting, stage: str, kind: str) -> None:
    make, status = ERRORS[kind]
    break_at(prompting, WHILE_SAMPLING[stage], make())
    sentence = prompting.refused(UNIT, status=status)
    assert "told to fail" in sentence
    assert ("not foreseen" in sentence) == (kind == "unforeseen")


@pytest.mark.parametrize("stage", BEFORE_SAMPLING)
def test_going_on_gives_the_plain_picture_and_says_so(prompting: Prompting, stage: str) -> None:
    plain = prompting.run().pixels
    go_on_after_failures()
    break_at(prompting, [BEFORE_SAMPLING[stage]], RuntimeError("told to fail"))
    check_warned(prompting, prompting.run(UNIT, n_iter=2), plain)


def test_going_on_after_an_attachment_failed(prompting: Prompting) -> None:
    plain = prompting.run().pixels
    go_on_after_failures()
    break_at(prompting, WHILE_SAMPLING["attaching"], RuntimeError("told to fail"))
    check_warned(prompting, prompting.run(UNIT, n_iter=2), plain)


def check_warned(prompting: Prompting, result: Any, plain: list[bytes]) -> None:
    assert result.pixels[:1] == plain
    for infotext in result.infotexts:
        assert re.search(rf'{WARNING}: "?Generated without', infotext)
        assert "IP-Adapter unit" not in infotext
    assert any("Generated without" in comment for comment in prompting.jobs[0].comments)
    assert not prompting.prepared or len(prompting.latents) == 2


@pytest.mark.parametrize("stage", ["a callback of a step", "reading the rows"])
def test_going_on_when_a_step_failed(prompting: Prompting, stage: str) -> None:
    plain = prompting.run().pixels
    go_on_after_failures()
    break_at(prompting, WHILE_SAMPLING[stage], AdapterFileError("told to fail."))
    check_warned(prompting, prompting.run(UNIT, n_iter=2), plain)


def test_going_on_when_a_later_step_failed(prompting: Prompting) -> None:
    """The unit's claim stays, because it acted, and the warning says that it did not act to the end."""
    plain, whole = prompting.run(steps=4).pixels, prompting.run(UNIT, steps=4).pixels
    go_on_after_failures()
    for reader in (SequenceReader, OptionsReader):
        prompting.patch.setattr(reader, "begin_step", _failing_at_third(reader.begin_step))
    result = prompting.run(UNIT, steps=4)
    assert result.pixels not in (plain, whole)
    assert "IP-Adapter unit 1" in result.infotexts[0]
    assert "from pass 1 on, was sampled without" in result.infotexts[0]


def _failing_at_third(begin_step: Callable[..., None]) -> Callable[..., None]:
    calls = 0

    def begin(self: Any, params: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise AdapterFileError("told to fail.")
        begin_step(self, params)

    return begin


BROKEN = {"images": ["sha256:" + "0" * 64], "weight": 1.0}


def test_going_on_without_the_unit_that_failed(prompting: Prompting) -> None:
    other = {"images": [BLUE], "weight": 0.6}
    alone = prompting.run({"images": [GREEN], "enabled": False}, other).pixels
    assert "not in" in prompting.refused(BROKEN, other)
    go_on_after_failures()
    result = prompting.run(BROKEN, other)
    assert result.pixels == alone
    assert "IP-Adapter unit 2" in result.infotexts[0]
    assert "IP-Adapter unit 1" not in result.infotexts[0]
    assert f"{WARNING}: " in result.infotexts[0]
    assert any("without unit 1" in comment for comment in prompting.jobs[0].comments)


def test_a_warning_does_not_outlive_its_job(prompting: Prompting) -> None:
    go_on_after_failures()
    assert WARNING in prompting.run(BROKEN).infotexts[0]
    assert WARNING not in prompting.run(UNIT).infotexts[0]
    assert "IP-Adapter" not in prompting.run().infotexts[0]


ODD_ARGUMENTS: dict[str, list[Any]] = {
    "nested objects": [{"images": [RED], "weight": {"a": 1}}],
    "a list for a text": [{"images": [RED], "adapter": ["x"]}],
    "a picture in a picture": [{"images": [[RED]]}],
    "a number for pictures": [{"images": 5}],
    "null": [{"images": [RED], "weight": None}],
    "an enormous number": [{"images": [RED], "weight": 10**400}],
    "broken JSON": ["{"],
    "deep JSON": ["[" * 5000],
    "start after end": [{"images": [RED], "start": 0.9, "end": 0.1}],
    "a digest that is none": [{"images": ["sha256:../../etc/passwd"]}],
    "an empty picture": [{"images": [""]}],
    "half a picture": [{"images": [RED[: len(RED) // 2]]}],
}


@pytest.mark.parametrize("name", ODD_ARGUMENTS)
def test_odd_arguments_get_a_sentence(prompting: Prompting, name: str) -> None:
    prompting.refused(*ODD_ARGUMENTS[name])
    assert not [report for report in prompting.standin.reports if "Error running" in report]


@pytest.mark.parametrize("name", ["services", "Job"])
def test_a_job_that_cannot_even_be_made_stops_too(prompting: Prompting, name: str) -> None:
    from lib_ipadapter.webui import script

    plain = prompting.run().pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, name, _raising)
        assert "told to fail" in prompting.refused(UNIT, status=500)
        assert prompting.run().pixels == plain
    assert prompting.run(UNIT).pixels != plain


def _raising(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("told to fail")


def test_what_nobody_foresaw_about_arguments_stops_the_job_too(prompting: Prompting) -> None:
    from lib_ipadapter.webui import script

    break_at(prompting, [(script, "parse_args")], ZeroDivisionError("told to fail"))
    assert "told to fail" in prompting.refused(UNIT, status=500)


def test_missing_files_are_named_with_the_places_searched(prompting: Prompting) -> None:
    folder = prompting.standin.data_dir / "models" / "ipadapter"
    hidden = folder.with_name("elsewhere")
    folder.rename(hidden)
    try:
        sentence = prompting.refused(UNIT)
    finally:
        hidden.rename(folder)
    assert "no adapter for pictures and SD1" in sentence
    assert str(folder) in sentence
    encoder = folder / "sample-vision-encoder.safetensors"
    encoder.rename(hidden)
    try:
        sentence = prompting.refused(UNIT)
    finally:
        hidden.rename(encoder)
    assert "encoder" in sentence
    assert prompting.run(UNIT).pixels
