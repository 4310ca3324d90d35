"""Rescaled guidance on the stand-in host: the paper's formula written out in the host's own denoiser gives the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from tests.e2e.client import encoded, picture
from tests.webui.prompting import BLUE, RED, WARNING, Prompting, assert_same_latents

UNIT = {"images": [RED], "weight": 0.8}
HALF = Image.new("L", (64, 64))
HALF.paste(255, (0, 0, 40, 64))
JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"batch_size": 2},
    "AND": {"prompt": "a cat :0.7 AND a dog :0.6", "batch_size": 2},
    "Heun": {"sampler_name": "Heun"},
    "DDIM": {"sampler_name": "DDIM", "steps": 3},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "inpaint": {
        "route": "img2img", "init_images": [encoded(picture((20, 200, 60), size=(64, 64)))], "mask": encoded(HALF),
        "mask_blur": 0, "denoising_strength": 0.9,
    },
    "inpaint, DDIM": {
        "route": "img2img", "init_images": [encoded(picture((20, 200, 60), size=(64, 64)))], "mask": encoded(HALF),
        "mask_blur": 0, "denoising_strength": 0.9, "sampler_name": "DDIM", "steps": 3,
    },
}  # fmt: skip


def rescaled(guided: Tensor, cond: Tensor, noisy: Tensor, kept: Tensor, amount: float, *, noise: bool) -> Tensor:
    """Lin et al. 2023, section 3.4, in v; `noisy` is of the variance preserving kind, `kept` alphas_cumprod."""
    alpha, sigma = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]

    def to_v(prediction: Tensor) -> Tensor:
        return (prediction - sigma * noisy) / alpha if noise else (alpha * noisy - prediction) / sigma

    v, v_cond = to_v(guided), to_v(cond)
    scaled = v * v_cond.std(dim=(1, 2, 3), keepdim=True) / v.std(dim=(1, 2, 3), keepdim=True)
    v = amount * scaled + (1 - amount) * v
    return alpha * v + sigma * noisy if noise else alpha * noisy - sigma * v


def by_hand(prompting: Prompting, patch: pytest.MonkeyPatch, amount: Callable[[float], float]) -> None:
    """Rescale in the host's own code, by an amount that follows from the fraction of the pass that is done."""
    if prompting.is_forge:
        _by_hand_forge(patch, amount)
    else:
        _by_hand_a1111(patch, amount)


def _by_hand_forge(patch: pytest.MonkeyPatch, amount: Callable[[float], float]) -> None:
    from modules import cfg_denoiser_forge

    inner = cfg_denoiser_forge.sampling_function

    def guided(unet: Any, params: Any, cond_scale: float, composition: Any) -> Any:
        result, cond, uncond = inner(unet, params, cond_scale, composition)
        denoiser = params.denoiser
        if cond_scale == 1.0:
            return result, cond, uncond
        alone = uncond + (cond - uncond) * sum(weight for _, weight in composition[0])
        kept = 1 / (params.sigma**2 + 1)
        noisy = params.x * kept.sqrt()[:, None, None, None]
        by = amount(denoiser.step / denoiser.total_steps)
        return rescaled(result, alone, noisy, kept, by, noise=False), cond, uncond

    patch.setattr(cfg_denoiser_forge, "sampling_function", guided)


def _by_hand_a1111(patch: pytest.MonkeyPatch, amount: Callable[[float], float]) -> None:
    from modules import sd_samplers_cfg_denoiser as module

    inner, announce, params = module.CFGDenoiserA1111.combine_denoised, module.cfg_denoiser_callback, []

    def note(given: Any) -> None:
        params[:] = [given]
        announce(given)

    def combine(self: Any, x_out: Tensor, composition: Any, uncond: Any, scale: float) -> Tensor:
        result, rows = inner(self, x_out, composition, uncond, scale), len(composition)
        if scale == 1.0:
            return result
        alone = inner(self, x_out, composition, uncond, 1.0)
        noisy, level = params[0].x[-rows:], params[0].sigma[-rows:]
        noise = hasattr(self, "alphas")
        kept = self.alphas[level.long()] if noise else 1 / (level**2 + 1)
        noisy = noisy if noise else noisy * kept.sqrt()[:, None, None, None]
        return rescaled(result, alone, noisy, kept, amount(self.step / self.total_steps), noise=noise)

    patch.setattr(module, "cfg_denoiser_callback", note)
    patch.setattr(module.CFGDenoiserA1111, "combine_denoised", combine)


def reference(prompting: Prompting, *units: Any, amount: Callable[[float], float], **payload: Any) -> list[Tensor]:
    """Latents of the job with these units and the host's own rescaling."""
    with pytest.MonkeyPatch.context() as patch:
        by_hand(prompting, patch, amount)
        prompting.run(*units, **payload)
    return list(prompting.latents)


def assert_nothing_left(prompting: Prompting) -> None:
    from modules import shared

    for p in prompting.jobs:
        held = vars(p.sampler.model_wrap_cfg) if getattr(p, "sampler", None) is not None else {}
        assert not [name for name in held if name.startswith("combine_denoised")]
    if prompting.is_forge:
        assert "sampler_post_cfg_function" not in shared.sd_model.forge_objects.unet.model_options


@pytest.mark.parametrize("job", JOBS)
def test_it_is_the_papers_formula_in_every_kind_of_job(prompting: Prompting, job: str) -> None:
    payload = JOBS[job]
    plain = prompting.run(**payload).pixels
    without = prompting.run(UNIT, **payload)
    latents = list(prompting.latents)
    result = prompting.run({**UNIT, "cfg_rescale": 0.7}, **payload)
    ours = list(prompting.latents)
    assert_nothing_left(prompting)
    assert '"cfg_rescale":0.7' in json.dumps(result.infotexts[0]).replace("\\", "")
    assert WARNING not in result.infotexts[0]
    assert result.pixels != without.pixels
    assert any((one - other).abs().max() > 0.01 for one, other in zip(ours, latents, strict=True))
    assert_same_latents(ours, reference(prompting, UNIT, amount=lambda _: 0.7, **payload))
    assert prompting.run(UNIT, **payload).pixels == without.pixels
    assert prompting.run(**payload).pixels == plain, "nothing is left behind"


def test_it_holds_in_the_units_window_and_the_largest_counts(prompting: Prompting) -> None:
    first = {**UNIT, "cfg_rescale": 0.4}
    second = {"images": [BLUE], "weight": 0.5, "start": 0.5, "cfg_rescale": 0.9}
    third = {"images": [BLUE], "weight": 0.3, "end": 0.25}
    prompting.run(first, second, third, steps=4)
    ours = list(prompting.latents)
    without = [{**unit, "cfg_rescale": 0} for unit in (first, second, third)]
    by_step = reference(prompting, *without, amount=lambda done: 0.9 if done >= 0.5 else 0.4, steps=4)
    assert_same_latents(ours, by_step)


@pytest.mark.parametrize(
    ("payload", "options"),
    [({"cfg_scale": 1.0}, {}), ({"steps": 2}, {"skip_early_cond": 1.0}),
     ({"steps": 4}, {"s_min_uncond": 99.0, "s_min_uncond_all": True})],
)  # fmt: skip
def test_a_job_that_is_never_guided_is_as_without_and_does_not_claim_it(
    prompting: Prompting, payload: Any, options: Any
) -> None:
    from modules import shared

    for name, value in options.items():
        shared.opts.set(name, value)
    without = prompting.run(UNIT, **payload)
    result = prompting.run({**UNIT, "cfg_rescale": 0.7}, **payload)
    assert result.pixels == without.pixels
    assert "cfg_rescale" not in result.infotexts[0]
    assert "CFG rescale of unit 1 did nothing" in result.infotexts[0]


def test_steps_that_are_skipped_stay_as_they_are_beside_others(prompting: Prompting) -> None:
    from modules import shared

    shared.opts.set("skip_early_cond", 0.3)
    prompting.run({**UNIT, "cfg_rescale": 0.7}, steps=4)
    ours = list(prompting.latents)
    assert_same_latents(ours, reference(prompting, UNIT, amount=lambda _: 0.7, steps=4))


def test_a_failing_job_leaves_nothing_behind(prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_ipadapter.session import guidance

    plain = prompting.run().pixels

    def fail(*_args: Any) -> Tensor:
        raise RuntimeError("no memory for this")

    monkeypatch.setattr(guidance, "rescale_guidance", fail)
    assert prompting.post({**UNIT, "cfg_rescale": 0.7}).status_code == 500
    assert_nothing_left(prompting)
    prompting.standin.reports.clear()
    assert prompting.run().pixels == plain


def test_pictures_that_are_edited_are_rescaled_towards_the_prompts_own(prompting: Prompting) -> None:
    if prompting.is_forge:
        pytest.skip("Forge has no InstructPix2Pix guidance")
    from modules import sd_samplers_cfg_denoiser as module

    prompting.provide("sd15-instruct-pix2pix")
    prompting.standin.select("sd15-instruct-pix2pix")
    try:
        job = {"route": "img2img", "image_cfg_scale": 1.5, "denoising_strength": 1.0}
        prompting.run({**UNIT, "cfg_rescale": 0.7}, **job)
        ours = list(prompting.latents)
        assert_nothing_left(prompting)
        with pytest.MonkeyPatch.context() as patch:
            inner, announce, params = (
                module.CFGDenoiserA1111.combine_denoised_for_edit_model, module.cfg_denoiser_callback, []
            )  # fmt: skip

            def note(given: Any) -> None:
                params[:] = [given]
                announce(given)

            def combine(self: Any, x_out: Tensor, scale: float) -> Tensor:
                result, kept = inner(self, x_out, scale), 1 / (params[0].sigma[-1:] ** 2 + 1)
                noisy = params[0].x[-1:] * kept.sqrt()[:, None, None, None]
                return rescaled(result, x_out[:1], noisy, kept, 0.7, noise=False)

            patch.setattr(module, "cfg_denoiser_callback", note)
            patch.setattr(module.CFGDenoiserA1111, "combine_denoised_for_edit_model", combine)
            prompting.run(UNIT, **job)
        assert_same_latents(ours, list(prompting.latents))
    finally:
        prompting.standin.select("sd15")
