"""After any job, finished or not, the host is as it was: modules, hooks, callbacks, `p`, memory, the next picture."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_ipadapter.encoders.clip_vision import VisionEncoder
from tests.e2e.client import encoded, picture
from tests.webui.as_found import Around, host, unet
from tests.webui.prompting import BLUE, RED, Prompting

UNIT = {"images": [RED], "weight": 0.8}
HIRES = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


JOBS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "batches": {"n_iter": 2, "batch_size": 2},
    "hires": HIRES,
    "second order": {"sampler_name": "Heun"},
    "img2img": {"route": "img2img"},
}


@pytest.mark.parametrize("name", JOBS)
def test_after_success(prompting: Prompting, around: Around, name: str) -> None:
    around(lambda: prompting.run(UNIT, {"images": [BLUE], "weight": 0.3}, **JOBS[name]))


@pytest.mark.parametrize("how", ["interrupt", "skip"])
@pytest.mark.parametrize("batches", [1, 2])
def test_after_stopping_the_job(prompting: Prompting, around: Around, how: str, batches: int) -> None:
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
def test_after_an_error_inside_the_unet(prompting: Prompting, around: Around, step: int) -> None:
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


def test_after_an_error_while_decoding(prompting: Prompting, around: Around) -> None:
    from modules import processing_loop

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("told to fail")

    def job() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processing_loop, "decode_latent_batch", fail)
            assert prompting.post(UNIT).status_code == 500

    around(job)


@pytest.mark.parametrize("name", ["process_batch", "process_before_every_sampling", "on_cfg_denoiser", "postprocess"])
def test_after_an_error_of_another_script(prompting: Prompting, around: Around, record: Any, name: str) -> None:
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


def test_after_reloading_the_page(prompting: Prompting, around: Around) -> None:
    def reload() -> None:
        first = prompting.run(UNIT).pixels
        prompting.standin.reload_ui()
        prompting.standin.reports.clear()
        assert prompting.run(UNIT).pixels == first

    around(reload)


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
