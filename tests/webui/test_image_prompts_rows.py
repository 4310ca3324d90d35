"""Every way in which the hosts call a UNet: each row gets the image attention that its text asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.webui.prompting import BLUE, LONG, RED, Prompting, assert_same_latents
from tests.webui.watching import COND, UNCOND

C, U = COND, UNCOND
UNITS = ({"images": [RED], "weight": 0.8}, {"images": [BLUE], "weight": -0.4, "uncond": "black"})


@dataclass(frozen=True)
class Case:
    """A job and, per flavour, the kinds of the rows of its first step's calls (None: not said here)."""

    payload: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    a1111: list[list[int]] | None = None
    forge: list[list[int]] | None = None
    checkpoint: str = "sd15"
    only: str = ""


CASES = {
    "batch 1": Case(a1111=[[C, U]], forge=[[U, C]]),
    "batch 2": Case({"batch_size": 2}, a1111=[[C, C, U, U]], forge=[[U, U, C, C]]),
    "not batched": Case({"batch_size": 2}, {"batch_cond_uncond": False}, [[C, C], [U, U]]),
    "long prompt": Case({"prompt": LONG}, a1111=[[C], [U]], forge=[[U, C]]),
    "long prompt, batch 2": Case({"prompt": LONG, "batch_size": 2}, a1111=[[C, C], [U, U]]),
    "long negative prompt": Case({"negative_prompt": LONG}, a1111=[[C], [U]]),
    "long prompt, padded": Case({"prompt": LONG}, {"pad_cond_uncond": True}, [[C, U]], only="a1111"),
    "long prompt, padded v0": Case({"prompt": LONG}, {"pad_cond_uncond_v0": True}, [[C, U]], only="a1111"),
    "long negative, padded v0": Case({"negative_prompt": LONG}, {"pad_cond_uncond_v0": True}, [[C, U]], only="a1111"),
    "AND": Case({"prompt": "a cat AND a dog", "batch_size": 2}, a1111=[[C, C, C, C, U, U]], forge=[[U, U, *[C] * 4]]),
    "AND, unequal lengths": Case(
        {"prompt": f"a cat AND {LONG}", "batch_size": 2}, a1111=[[C, C, C, C], [U, U]], forge=[[U, U, *[C] * 4]]
    ),
    "AND, not batched": Case({"prompt": "a cat AND a dog"}, {"batch_cond_uncond": False}, [[C], [C], [U]]),
    "AND, long": Case({"prompt": f"a cat AND {LONG} AND a dog", "batch_size": 2}, a1111=[[C] * 4, [C] * 2, [U, U]]),
    "CFG 1": Case({"cfg_scale": 1.0}, a1111=[[C, U]], forge=[[C]]),
    "skip early CFG": Case({"steps": 4}, {"skip_early_cond": 0.3}, [[C]], [[C]]),
    "skip early CFG, not batched": Case({"steps": 4}, {"skip_early_cond": 0.3, "batch_cond_uncond": False}, [[C]]),
    "NGMS": Case({"steps": 4}, {"s_min_uncond": 8.0}, [[C, U]], [[U, C]]),
    "NGMS in all steps": Case({"steps": 4}, {"s_min_uncond": 8.0, "s_min_uncond_all": True}, [[C, U]], [[U, C]]),
    "NGMS, AND, long": Case({"steps": 4, "prompt": f"a cat AND {LONG}"}, {"s_min_uncond": 8.0}, [[C, C], [U]]),
    "CFG 1, AND": Case({"cfg_scale": 1.0, "prompt": "a cat AND a dog"}, a1111=[[C, C, U]], forge=[[C, C]]),
    "Heun": Case({"sampler_name": "Heun"}, a1111=[[C, U]]),
    "Euler a": Case({"sampler_name": "Euler a"}),
    "DPM++ 2M": Case({"sampler_name": "DPM++ 2M", "steps": 3}),
    "DDIM": Case({"sampler_name": "DDIM", "steps": 3}),
    "DPM adaptive": Case({"sampler_name": "DPM adaptive"}),
    "img2img": Case({"route": "img2img", "denoising_strength": 0.9}),
    "img2img, two": Case({"route": "img2img", "denoising_strength": 0.9, "batch_size": 2}, a1111=[[C, C, U, U]]),
    "inpainting checkpoint": Case({}, {}, [[C, U]], [[U, C]], checkpoint="sd15-inpainting"),
    "InstructPix2Pix": Case(
        {"route": "img2img", "image_cfg_scale": 1.5, "denoising_strength": 1.0, "batch_size": 2}, {},
        [[C, C, U, U, U, U]], checkpoint="sd15-instruct-pix2pix", only="a1111",
    ),
    "InstructPix2Pix, not batched": Case(
        {"route": "img2img", "image_cfg_scale": 1.5, "denoising_strength": 1.0}, {"batch_cond_uncond": False},
        [[C], [U], [U]], checkpoint="sd15-instruct-pix2pix", only="a1111",
    ),
    "InstructPix2Pix at image CFG 1": Case(
        {"route": "img2img", "image_cfg_scale": 1.0, "denoising_strength": 1.0}, {},
        [[C, U]], checkpoint="sd15-instruct-pix2pix", only="a1111",
    ),
    "SD2": Case(a1111=[[C, U]], checkpoint="sd21"),
    "SDXL": Case({"steps": 1}, a1111=[[C, U]], forge=[[U, C]], checkpoint="sdxl"),
    "two batches": Case({"n_iter": 2, "batch_size": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_row_gets_the_image_attention_of_its_text(prompting: Prompting, name: str) -> None:
    from modules import shared

    case = CASES[name]
    if case.only not in ("", prompting.standin.flavour):
        pytest.skip(f"{case.only} alone has this")
    prompting.provide(case.checkpoint)
    prompting.standin.select(case.checkpoint)
    for key, value in case.options.items():
        assert key in shared.opts.data_labels
        shared.opts.set(key, value)
    with prompting.watch() as calls:
        prompting.run(*UNITS, **case.payload)
    expected = case.forge if prompting.is_forge else case.a1111
    if expected is not None:
        assert [call.kinds for call in calls[: len(expected)]] == expected
    prompting.check_rows(calls)
    ours = list(prompting.latents)
    assert_same_latents(ours, prompting.reference(**case.payload))


@pytest.mark.parametrize("payload", [{"batch_size": 2}, {"prompt": "a cat AND a dog"}, {"sampler_name": "Heun"}])
def test_split_calls_give_the_picture_of_joined_ones(prompting: Prompting, payload: dict[str, Any]) -> None:
    """A1111 by its setting, Forge because memory is short."""
    from modules import shared

    prompting.run(*UNITS, **payload)
    joined = list(prompting.latents)
    if prompting.is_forge:
        from backend import memory_management

        prompting.patch.setattr(memory_management, "free_memory_bytes", 1)
    else:
        shared.opts.set("batch_cond_uncond", False)
    with prompting.watch() as calls:
        prompting.run(*UNITS, **payload)
    assert all(len(set(call.kinds)) == 1 for call in calls), "no call has both kinds"
    prompting.check_rows(calls)
    assert_same_latents(prompting.latents, joined)
