"""After any job, finished or not, the host is as it was: modules, hooks, callbacks, `p`, memory, the next picture."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_ipadapter.encoders.clip_vision import VisionEncoder
from lib_ipadapter.session.wrapping import WrappedSample
from tests.e2e.client import encoded, picture
from tests.webui.prompting import BLUE, RED, Prompting

UNIT = {"images": [RED], "weight": 0.8}
HIRES = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


def host() -> Any:
    from lib_ipadapter.webui.process import services

    return services().host


def unet() -> torch.nn.Module:
    loaded = host().loaded_unet()
    assert loaded is not None
    return loaded


def snapshot() -> dict[str, Any]:
    """Every attribute name and hook of every module of the UNet, and how many callbacks the host holds."""
    from modules import script_callbacks

    found: dict[str, Any] = {}
    for path, module in unet().named_modules():
        state = vars(module)
        hooks = {
            name: [id(hook) for hook in value.values() if getattr(hook, "__name__", "") != "note_unet_call"]
            for name, value in state.items()
            if name.endswith("_hooks")
        }
        found[path] = (id(module), sorted(state), hooks, type(module).forward)
    found["callbacks"] = {name: len(entries) for name, entries in script_callbacks.callback_map.items()}
    return found


def assert_left_as_found(prompting: Prompting, before: dict[str, Any], plain: list[bytes]) -> None:
    assert snapshot() == before
    for p in prompting.jobs:
        assert "sample" not in vars(p)
    prompting.standin.reports.clear()
    assert prompting.run().pixels == plain
    assert snapshot() == before


@pytest.fixture
def around(prompting: Prompting):
    """Run what the test hands over between two plain pictures and two snapshots."""
    plain = prompting.run().pixels
    before = snapshot()

    def check(happens: Callable[[], Any]) -> None:
        happens()
        assert_left_as_found(prompting, before, plain)

    return check


JOBS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "batches": {"n_iter": 2, "batch_size": 2},
    "hires": HIRES,
    "second order": {"sampler_name": "Heun"},
    "img2img": {"route": "img2img"},
}


@pytest.mark.parametrize("name", JOBS)
def test_after_success(prompting: Prompting, around: Any, name: str) -> None:
    around(lambda: prompting.run(UNIT, {"images": [BLUE], "weight": 0.3}, **JOBS[name]))


@pytest.mark.parametrize("how", ["interrupt", "skip"])
@pytest.mark.parametrize("batches", [1, 2])
def test_after_stopping_the_job(prompting: Prompting, around: Any, how: str, batches: int) -> None:
    from modules import script_callbacks, shared

    def stop(_params: Any) -> None:
        getattr(shared.state, how)()

    script_callbacks.on_cfg_after_cfg(stop, name="stop")
    try:
        prompting.run(UNIT, steps=4, n_iter=batches)
    finally:
        script_callbacks.remove_callbacks_for_function(stop)
    around(lambda: None)


def test_a_unit_whose_start_was_never_reached_is_not_claimed(prompting: Prompting) -> None:
    from modules import script_callbacks, shared

    def stop(_params: Any) -> None:
        shared.state.interrupt()

    script_callbacks.on_cfg_after_cfg(stop, name="stop")
    try:
        result = prompting.run(UNIT, {"images": [BLUE], "start": 0.9}, steps=4)
    finally:
        script_callbacks.remove_callbacks_for_function(stop)
    assert "IP-Adapter unit 1" in result.infotexts[0]
    assert "IP-Adapter unit 2" not in result.infotexts[0]


@pytest.mark.parametrize("step", [0, 1])
def test_after_an_error_inside_the_unet(prompting: Prompting, around: Any, step: int) -> None:
    calls = 0

    def fail(_module: Any, _args: Any, _output: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise RuntimeError("told to fail")

    def job() -> None:
        handle = unet().get_submodule("middle_block.0").register_forward_hook(fail)
        try:
            answer = prompting.post(UNIT)
        finally:
            handle.remove()
        assert answer.status_code == 500
        assert "told to fail" in answer.text

    around(job)


def test_after_an_error_while_decoding(prompting: Prompting, around: Any) -> None:
    from modules import processing_loop

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("told to fail")

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processing_loop, "decode_latent_batch", fail)
            assert prompting.post(UNIT).status_code == 500

    around(job)


@pytest.mark.parametrize("name", ["process_batch", "process_before_every_sampling", "on_cfg_denoiser", "postprocess"])
def test_after_an_error_of_another_script(prompting: Prompting, around: Any, record: Any, name: str) -> None:
    def job() -> None:
        record.fail_in = name
        assert prompting.post(UNIT).status_code == 200
        record.fail_in = ""

    around(job)


@pytest.mark.parametrize("way", ["hires", "refiner"])
def test_after_a_switch_of_checkpoints(prompting: Prompting, way: str) -> None:
    """The UNets that the job leaves behind are clean too."""
    first, second = ("sd15", "sd15-inpainting") if way == "hires" else ("sd15-inpainting", "sd15")
    if way == "refiner" and prompting.is_forge:
        first, second = "sd15", "sd15-b"
    prompting.provide(first, second)
    prompting.standin.select(first)
    plain = prompting.run().pixels
    other = f"{second}.safetensors"
    how = HIRES | {"hr_checkpoint_name": other}
    if way == "refiner":
        how = {"refiner_checkpoint": other, "refiner_switch_at": 0.5}
    seen: list[torch.nn.Module] = []
    prompting.patch.setattr(type(host()), "unet", _noting(type(host()).unet, seen))
    prompting.run(UNIT, **how)
    assert len({id(net) for net in seen}) == 2
    for net in seen:
        for module in net.modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            assert not [hook for hook in hooks if getattr(hook, "__name__", "") != "note_unet_call"]
            assert "forward" not in vars(module)
    assert prompting.run().pixels == plain


def _noting(method: Callable[..., Any], seen: list[torch.nn.Module]) -> Callable[..., Any]:
    def noted(self: Any, p: Any) -> Any:
        seen.append(method(self, p))
        return seen[-1]

    return noted


def test_after_reloading_the_page(prompting: Prompting, around: Any) -> None:
    def reload() -> None:
        first = prompting.run(UNIT).pixels
        prompting.standin.reload_ui()
        prompting.standin.reports.clear()
        assert prompting.run(UNIT).pixels == first

    around(reload)


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
def test_a_nested_job_has_a_scope_of_its_own(prompting: Prompting, around: Any, units: Any, copied: bool) -> None:
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


def test_copies_of_a_processing_object_as_the_plot_makes_them(prompting: Prompting, around: Any) -> None:
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


def test_a_copy_made_while_wrapped_samples_itself(prompting: Prompting, around: Any) -> None:
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


def test_a_job_that_ends_between_wrapping_and_sampling(prompting: Prompting, around: Any) -> None:
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


def test_another_extension_that_restores_our_wrapper_later(prompting: Prompting, around: Any) -> None:
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


def test_nothing_of_a_job_stays_in_memory_but_the_bounded_cache(prompting: Prompting) -> None:
    from lib_ipadapter.session import features

    encoders: list[weakref.ref[VisionEncoder]] = []
    load = features.load_vision_encoder
    during: list[bool] = []

    def loading(*args: Any, **kwargs: Any) -> VisionEncoder:
        encoder = load(*args, **kwargs)
        encoders.append(weakref.ref(encoder))
        return encoder

    prompting.patch.setattr(features, "load_vision_encoder", loading)
    handle = unet().register_forward_pre_hook(
        lambda *_: during.append(all(encoder() is None for encoder in encoders))
    )
    fresh = encoded(picture((17, 99, 203)))
    prompting.run({"images": [fresh]})
    handle.remove()
    assert encoders
    assert all(during), "the encoder leaves before the first step"
    jobs = [weakref.ref(vars(p)["ipadapter_job"]) for p in prompting.jobs]
    prompting.jobs.clear()
    prompting.prepared.clear()
    prompting.run()
    gc.collect()
    assert all(job() is None for job in jobs)
