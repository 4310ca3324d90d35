"""The stand-in's UNet calls per denoiser step are the real hosts': rows, context lengths, markers."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.webui.standin.host import encode

LONG = " ".join(["word"] * 160)
"""Over two chunks of 75 tokens: a context of 231."""


def calls_per_step(record) -> list[tuple[int, int]]:
    """`(rows, context length)` of each UNet call, in order."""
    return [(rows, length) for rows, length, _ in record.unet_calls]


A1111 = {
    "default": ({}, {}, [(2, 77)]),
    "batch of 2": ({"batch_size": 2}, {}, [(4, 77)]),
    "batch of 2, calls not joined": ({"batch_size": 2}, {"batch_cond_uncond": False}, [(2, 77), (2, 77)]),
    "long prompt": ({"prompt": LONG}, {}, [(1, 231), (1, 77)]),
    "long negative prompt": ({"negative_prompt": LONG}, {}, [(1, 77), (1, 231)]),
    "long prompt, padded": ({"prompt": LONG}, {"pad_cond_uncond": True}, [(2, 231)]),
    "long prompt, padded the old way": ({"prompt": LONG}, {"pad_cond_uncond_v0": True}, [(2, 231)]),
    "AND, batch of 2": ({"prompt": "a AND b", "batch_size": 2}, {}, [(6, 77)]),
    "AND, unequal, batch of 2": ({"prompt": f"a AND {LONG}", "batch_size": 2}, {}, [(4, 231), (2, 77)]),
    "AND, unequal, not joined": ({"prompt": f"a AND {LONG}", "batch_size": 2}, {"batch_cond_uncond": False},
                                 [(2, 231), (2, 231), (2, 77)]),
    "CFG 1": ({"cfg_scale": 1.0}, {}, [(2, 77)]),
    "all steps skip the negative": ({}, {"skip_early_cond": 1.0}, [(1, 77)]),
}


@pytest.mark.parametrize("case", A1111)
def test_a1111_calls(standin, record, case):
    if standin.flavour != "a1111":
        pytest.skip("A1111's calls")
    payload, options, expected = A1111[case]
    standin.post("options", options)
    standin.txt2img(steps=2, **payload)
    assert calls_per_step(record) == expected * 2


FORGE = {
    "default": ({}, [(2, 77, [1, 0])]),
    "batch of 2": ({"batch_size": 2}, [(4, 77, [1, 0])]),
    "AND": ({"prompt": "a AND b"}, [(3, 77, [1, 0, 0])]),
    "CFG 1": ({"cfg_scale": 1.0}, [(1, 77, [0])]),
    "long prompt": ({"prompt": LONG}, [(2, 231, [1, 0])]),
    # 3 and 5 chunks would have to be repeated to 15, more than four times the shorter one
    "lengths that do not join": ({"prompt": LONG, "negative_prompt": " ".join(["word"] * 375)},
                                 [(1, 231, [0]), (1, 385, [1])]),
}


@pytest.mark.parametrize("case", FORGE)
def test_forge_calls(standin, record, case):
    if standin.flavour != "forge":
        pytest.skip("Forge's calls")
    payload, expected = FORGE[case]
    standin.txt2img(steps=2, **payload)
    assert record.unet_calls == expected * 2


def test_forge_splits_calls_when_memory_is_short(standin, record, monkeypatch):
    if standin.flavour != "forge":
        pytest.skip("Forge's memory manager")
    from backend import memory_management

    joined = standin.txt2img(steps=1)
    record.unet_calls.clear()
    monkeypatch.setattr(memory_management, "free_memory_bytes", 1)
    split = standin.txt2img(steps=1)
    assert record.unet_calls == [(1, 77, [1]), (1, 77, [0])]
    assert max(abs(a - b) for a, b in zip(joined.pixels[0], split.pixels[0], strict=True)) <= 1


def test_forge_drops_what_was_patched_outside_before_every_sampling(standin, record):
    if standin.flavour != "forge":
        pytest.skip("Forge's objects")
    from modules import shared

    model = shared.sd_model
    patched = model.forge_objects.unet.clone()
    patched.model_options["transformer_options"]["mark"] = [1]
    other = patched.clone()
    assert other.model is patched.model
    marks = [patcher.model_options["transformer_options"]["mark"] for patcher in (patched, other)]
    assert marks[0] == marks[1]
    assert marks[0] is not marks[1], "clone() copies the options deeply"
    model.forge_objects.unet = patched
    standin.txt2img(steps=1)
    assert model.forge_objects.unet is not patched
    assert record.pbes[0]["uc"] is not None
    standin.txt2img(steps=1, cfg_scale=1.0)
    assert record.pbes[1]["uc"] is None


def test_some_steps_skip_the_negative_prompt(standin, record):
    standin.post("options", {"s_min_uncond": 1000.0})
    standin.txt2img(steps=4)
    assert [rows for rows, _, _ in record.unet_calls] == [2, 1, 2, 1]


@pytest.mark.parametrize(("sampler", "calls", "total"), [
    ("Euler", 4, 4), ("Euler a", 4, 4), ("DPM++ 2M", 4, 4), ("Heun", 7, 8), ("DDIM", 3, 4)])
def test_samplers_count_their_steps_as_the_hosts_do(standin, record, sampler, calls, total):
    standin.txt2img(steps=4, sampler_name=sampler)
    assert [step["step"] for step in record.steps] == list(range(calls))
    assert {step["total"] for step in record.steps} == {total}
    if sampler == "Euler":
        assert [step["sampling_step"] for step in record.steps] == [0, 0, 1, 2], "the host's counter lags"


def test_ddim_hands_out_timesteps_on_a1111_and_sigmas_on_forge(standin, record):
    standin.txt2img(steps=4, sampler_name="DDIM")
    first = float(record.steps[0]["sigma"])
    assert first == 751 if standin.flavour == "a1111" else 0 < first < 15


def test_the_adaptive_sampler_takes_as_many_calls_as_it_likes(standin, record):
    standin.txt2img(steps=4, sampler_name="DPM adaptive")
    assert len(record.steps) > record.steps[0]["total"]


def test_instruct_pix2pix_has_a_third_set_of_rows_on_a1111(standin, record):
    standin.select("sd15-instruct-pix2pix")
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    standin.img2img(picture, steps=4, denoising_strength=0.5, image_cfg_scale=1.5)
    assert {rows for rows, _, _ in record.unet_calls} == {3 if standin.flavour == "a1111" else 2}


@pytest.mark.parametrize("whole", [True, False], ids=["whole picture", "only masked"])
@pytest.mark.parametrize("kind", ["sd15", "sd15-inpainting"])
def test_inpainting_keeps_what_is_not_masked(standin, record, kind, whole):
    standin.select(kind)
    picture = Image.effect_noise((128, 128), 60).convert("RGB")
    mask = Image.new("L", picture.size)
    mask.paste(255, (40, 40, 88, 88))
    out = standin.img2img(picture, steps=3, width=128, height=128, mask=encode(mask), inpaint_full_res=not whole,
                          mask_blur=0).images[0]
    assert out.size == picture.size
    corner = (0, 0, 24, 24)
    assert out.crop(corner).tobytes() == picture.crop(corner).tobytes()
    assert out.crop((48, 48, 80, 80)).tobytes() != picture.crop((48, 48, 80, 80)).tobytes()
    assert "on_mask_blend" in record.calls
    assert ("before_process_init_images" in record.calls) == (standin.flavour == "forge")


def test_a_hires_checkpoint_of_another_kind_is_another_net_and_of_the_same_kind_the_same_on_a1111(standin, record):
    standin.add_checkpoints("sd15-b", "sd21")
    hires = {"enable_hr": True, "hr_additional_modules": [], "hr_cfg": 7.0, "steps": 1}
    standin.txt2img(hr_checkpoint_name="sd21", **hires)
    base, upscaled = record.models[0], record.models[-1]
    assert base != upscaled
    record.models.clear()
    standin.txt2img(hr_checkpoint_name="sd15-b", **hires)
    assert (record.models[0] == record.models[-1]) == (standin.flavour == "a1111")


def test_the_refiner_takes_over_in_mid_job_without_a_script_callback(standin, record):
    standin.add_checkpoints("sdxl")
    before = standin.txt2img(steps=4).pixels
    record.calls.clear()
    record.steps.clear()
    refined = standin.txt2img(steps=4, refiner_checkpoint="sdxl", refiner_switch_at=0.5)
    assert record.calls.count("process_before_every_sampling") == 1
    assert len({step["model"] for step in record.steps}) == 2
    assert [step["cond"][-1] for step in record.steps][::3] == [768, 2048]
    assert refined.pixels != before
    assert standin.txt2img(steps=4).pixels == before, "the next job is on the first checkpoint again"


def test_an_active_alternative_unet_bypasses_the_nets_own_modules(standin, record):
    if standin.flavour != "a1111":
        pytest.skip("A1111's alternative UNets")
    import torch
    from modules import sd_unet, shared

    seen = []

    class Flat(sd_unet.SdUnet):
        def forward(self, x, timesteps, context, *args, **kwargs):
            return torch.zeros_like(x)

    handle = shared.sd_model.model.diffusion_model.middle_block.register_forward_hook(lambda *_: seen.append(1))
    try:
        sd_unet.current_unet = Flat()
        standin.txt2img(steps=1)
        assert not seen
        sd_unet.current_unet = None
        standin.txt2img(steps=1)
        assert seen
    finally:
        handle.remove()
