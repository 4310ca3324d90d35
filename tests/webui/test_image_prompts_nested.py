"""Jobs inside jobs and copies of processing objects: each samples itself, with its own units, and leaves nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lib_ipadapter.session.wrapping import WrappedSample
from tests.webui.as_found import Around
from tests.webui.prompting import BLUE, RED, Prompting

UNIT = {"images": [RED], "weight": 0.8}


def nested(prompting: Prompting, units: tuple[Any, ...], copied: bool) -> tuple[list[bytes], list[bytes]]:
    """A job with a unit whose `postprocess_image` runs another one, as detailers do; the pixels of both."""
    from modules import scripts
    from modules.processing import StableDiffusionProcessingImg2Img, process_images

    inner: list[bytes] = []
    runner = scripts.scripts_txt2img

    def postprocess_image(p: Any, pp: Any) -> None:
        if inner:
            return
        if copied:
            p2 = copy.copy(p)
            p2.seed, p2.prompt = 99, "a nested job"
        else:
            p2 = StableDiffusionProcessingImg2Img(init_images=[pp.image], **_fields(p))
            p2.scripts = scripts.scripts_img2img if units else None
            p2.script_args = tuple(_arguments(scripts.scripts_img2img, units))
        inner.append(b"")
        inner[:] = [image.tobytes() for image in process_images(p2).images]
        assert "sample" not in vars(p2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "postprocess_image", postprocess_image)
        outer = prompting.run(UNIT, n_iter=2)
    assert "IP-Adapter unit 1" in outer.infotexts[0]
    assert "IP-Adapter unit 1" in outer.infotexts[1]
    return outer.pixels, inner


def _fields(p: Any) -> dict[str, Any]:
    names = ("prompt", "negative_prompt", "sampler_name", "steps", "cfg_scale", "width", "height", "outpath_samples")
    return {name: getattr(p, name) for name in names} | {"seed": 5, "denoising_strength": 0.6,
                                                         "do_not_save_samples": True}  # fmt: skip


def _arguments(runner: Any, units: tuple[Any, ...]) -> list[Any]:
    values = [None if control is None else control.value for control in runner.inputs]
    values[0] = 0
    script = next(script for script in runner.scripts if script.title() == "IP-Adapter")
    if units:
        values[script.args_from : script.args_from + len(units)] = units
    return values


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("units", [(), (UNIT,), ({"images": [BLUE], "weight": 1.0},)])
def test_a_nested_job_has_a_scope_of_its_own(prompting: Prompting, around: Around, units: Any, copied: bool) -> None:
    alone = prompting.run(UNIT, n_iter=2).pixels

    def job() -> None:
        outer, inner = nested(prompting, units, copied)
        assert inner
        assert outer == alone

    around(job)


def test_a_nested_jobs_units_act_and_only_its_own(prompting: Prompting) -> None:
    _, without = nested(prompting, (), copied=False)
    _, red = nested(prompting, (UNIT,), copied=False)
    _, blue = nested(prompting, ({"images": [BLUE], "weight": 1.0},), copied=False)
    assert without != red
    assert red != blue
    assert without != blue


def test_copies_of_a_processing_object_as_the_plot_makes_them(prompting: Prompting, around: Around) -> None:
    from modules.api import api
    from modules.processing import process_images

    alone = [prompting.run(UNIT, seed=seed).pixels for seed in (3, 4)]

    def plot(p: Any) -> Any:
        cells = []
        for seed in (3, 4):
            cell = copy.copy(p)
            cell.seed = seed
            cells.append(process_images(cell))
            assert "sample" not in vars(cell)
        assert [[image.tobytes() for image in cell.images] for cell in cells] == alone
        return cells[-1]

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "process_images", plot)
            prompting.run(UNIT)

    around(job)


def test_a_copy_made_while_wrapped_samples_itself(prompting: Prompting, around: Around) -> None:
    """Between `process_batch` and sampling, `p.sample` is ours; a copy carries that along."""
    from modules import scripts
    from modules.processing import process_images

    alone, other = prompting.run(UNIT).pixels, prompting.run(UNIT, seed=77).pixels
    runner, inner = scripts.scripts_txt2img, []
    process_batch = runner.process_batch

    def with_copy(p: Any, **kwargs: Any) -> None:
        process_batch(p, **kwargs)
        if not inner:
            assert isinstance(vars(p)["sample"], WrappedSample)
            inner.append(b"")
            copied = copy.copy(p)
            copied.seed = 77
            inner[:] = [image.tobytes() for image in process_images(copied).images]
            assert "sample" not in vars(copied)

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "process_batch", with_copy)
            assert prompting.run(UNIT).pixels == alone
        assert inner == other

    around(job)


def test_a_job_that_ends_between_wrapping_and_sampling(prompting: Prompting, around: Around) -> None:
    """img2img batch goes on with the same object after a picture failed: wrapped once, not twice."""
    from modules import processing_base
    from modules.api import api
    from modules.processing import process_images

    alone = prompting.run(UNIT).pixels
    setup = processing_base.StableDiffusionProcessing.setup_conds

    def fail(_p: Any) -> None:
        raise RuntimeError("told to fail")

    def twice(p: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(p), "setup_conds", fail)
            with pytest.raises(RuntimeError, match="told to fail"):
                process_images(p)
        return process_images(p)

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "process_images", twice)
            assert prompting.run(UNIT).pixels == alone
        assert processing_base.StableDiffusionProcessing.setup_conds is setup

    around(job)


def test_another_extension_that_restores_our_wrapper_later(prompting: Prompting, around: Around) -> None:
    """It wraps `p.sample` after us, calls ours, and puts ours back when it is done."""
    from modules import scripts

    alone = prompting.run(UNIT).pixels
    runner = scripts.scripts_txt2img
    process_batch = runner.process_batch

    def also_wrap(p: Any, **kwargs: Any) -> None:
        process_batch(p, **kwargs)
        ours = p.sample

        def sample(*args: Any, **named: Any) -> Any:
            try:
                return ours(*args, **named)
            finally:
                p.sample = ours

        p.sample = sample

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "process_batch", also_wrap)
            first = prompting.run(UNIT, n_iter=2)
            assert first.pixels[:1] == alone

    around(job)
