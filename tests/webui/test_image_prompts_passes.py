"""Jobs with more than one pass or picture: hires fix, refiner, other checkpoints, img2img, inpainting, windows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from PIL import Image

from tests.e2e.client import encoded
from tests.webui.prompting import BLUE, GREEN, RED, WARNING, Prompting, assert_same_latents
from tests.webui.watching import COND

UNIT = {"images": [RED], "weight": 0.8}
HIRES = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.6, "hr_upscaler": "Latent"}


def check_job(prompting: Prompting, *units: Any, **payload: Any) -> list[Any]:
    """Run it, hold every row and the latents against the reference; the calls."""
    with prompting.watch() as calls:
        prompting.run(*(units or (UNIT,)), **payload)
    prompting.check_rows(calls)
    ours = list(prompting.latents)
    assert_same_latents(ours, prompting.reference(**payload))
    return calls


def switch_from(prompting: Prompting, first: str, *others: str) -> None:
    prompting.provide(first, *others)
    prompting.standin.select(first)


def with_image(calls: list[Any]) -> list[bool]:
    return [any(added.abs().max() > 0 for _, added, _ in call.layers.values()) for call in calls]


@pytest.mark.parametrize("upscaler", ["Latent", "None"])
def test_hires_fix(prompting: Prompting, upscaler: str) -> None:
    calls = check_job(prompting, **HIRES | {"hr_upscaler": upscaler})
    assert len(calls) == 4
    assert all(with_image(calls))


def test_hires_fix_with_its_own_prompts_and_a_long_one(prompting: Prompting) -> None:
    prompts = {"hr_prompt": "a blue boat on a lake", "hr_negative_prompt": "blurry"}
    assert all(with_image(check_job(prompting, batch_size=2, **HIRES, **prompts)))


def test_hires_fix_with_other_weights_of_the_same_layout(prompting: Prompting) -> None:
    switch_from(prompting, "sd15", "sd15-b")
    calls = check_job(prompting, **HIRES, hr_checkpoint_name="sd15-b.safetensors")
    assert all(with_image(calls))
    same = calls[0].unet == calls[-1].unet
    assert same == (not prompting.is_forge), "A1111 swaps the weights in place, Forge makes another model"


def test_hires_fix_with_a_checkpoint_of_another_layout(prompting: Prompting) -> None:
    switch_from(prompting, "sd15", "sd15-inpainting")
    calls = check_job(prompting, **HIRES, hr_checkpoint_name="sd15-inpainting.safetensors")
    assert calls[0].unet != calls[-1].unet
    assert all(with_image(calls))


@pytest.mark.parametrize("batches", [1, 2])
def test_a_refiner_that_takes_over_in_mid_pass(prompting: Prompting, batches: int) -> None:
    # A1111 swaps weights in place unless the layouts differ; Forge always makes another model, and feeds one layout.
    first, second = ("sd15", "sd15-b") if prompting.is_forge else ("sd15-inpainting", "sd15")
    switch_from(prompting, first, second)
    refiner = {"refiner_checkpoint": f"{second}.safetensors", "refiner_switch_at": 0.5}
    calls = check_job(prompting, steps=4, n_iter=batches, **refiner)
    assert len({call.unet for call in calls[:4]}) == 2
    assert all(with_image(calls))


@pytest.mark.parametrize("how", ["hires", "refiner"])
def test_a_pass_of_another_base_runs_without_the_unit_and_says_so(prompting: Prompting, how: str) -> None:
    switch_from(prompting, "sd15", "sd21")
    later = {
        "hires": HIRES | {"hr_checkpoint_name": "sd21.safetensors"},
        "refiner": {"refiner_checkpoint": "sd21.safetensors", "refiner_switch_at": 0.5},
    }[how]
    with prompting.watch() as calls:
        result = prompting.run({**UNIT, "adapter": "ip-adapter_sd15"}, **later)
    fits = [call.unet == calls[0].unet for call in calls]
    assert with_image(calls) == fits
    assert False in fits
    infotext = result.infotexts[0]
    assert "IP-Adapter unit 1" in infotext
    assert re.search(rf"{WARNING}: .*Unit 1 was off in a pass that it does not fit", infotext)
    assert any("SD2" in comment for comment in prompting.jobs[0].comments)


def test_a_unit_for_the_later_checkpoint_alone_acts_there(prompting: Prompting) -> None:
    switch_from(prompting, "sd15", "sd21")
    with prompting.watch() as calls:
        result = prompting.run(
            {**UNIT, "adapter": "ip-adapter_sd21"}, **HIRES, hr_checkpoint_name="sd21.safetensors"
        )
    assert with_image(calls) == [call.unet != calls[0].unet for call in calls]
    assert WARNING in result.infotexts[0]


def test_a_unit_that_fits_no_pass_stops_the_job(prompting: Prompting) -> None:
    switch_from(prompting, "sd15", "sd15-b", "sd21")
    hires = HIRES | {"hr_checkpoint_name": "sd15-b.safetensors"}
    sentence = prompting.refused({**UNIT, "adapter": "ip-adapter_sd21"}, **hires)
    assert "SD2" in sentence
    assert "SD1" in sentence


def test_auto_follows_the_loaded_checkpoint(prompting: Prompting) -> None:
    for kind, base in (("sd15", "sd15"), ("sd21", "sd21"), ("sd15-inpainting", "sd15")):
        switch_from(prompting, kind)
        prompting.run(UNIT)
        assert base in prompting.prepared[0].choice.name


MASK = Image.new("L", (64, 64))
MASK.paste(255, (16, 20, 48, 45))
IMG2IMG = {
    "img2img": {},
    "whole picture": {"mask": encoded(MASK), "inpaint_full_res": False},
    "only masked": {"mask": encoded(MASK), "inpaint_full_res": True, "inpaint_full_res_padding": 4},
    "inpainting checkpoint": {"mask": encoded(MASK), "inpaint_full_res": True, "inpaint_full_res_padding": 4},
}


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img_never_crops_the_reference(prompting: Prompting, name: str) -> None:
    switch_from(prompting, "sd15-inpainting" if "checkpoint" in name else "sd15")
    prompting.run(UNIT)
    whole = prompting.prepared[0]
    payload = {"route": "img2img", "denoising_strength": 0.9, **IMG2IMG[name]}
    calls = check_job(prompting, **payload)
    assert all(with_image(calls))
    assert prompting.prepared == [] or prompting.prepared[0].digests == whole.digests
    for key_id, (key, value) in prompting.prepared[0].kv.items():
        assert key.equal(whole.kv[key_id][0])
        assert value.equal(whole.kv[key_id][1])


def test_img2img_batch_runs_one_object_repeatedly(prompting: Prompting) -> None:
    """A1111's batch tab: `process_images(p)` again and again, with other pictures."""
    prompting.run(UNIT, route="img2img", denoising_strength=0.9)
    from modules.api import api
    from modules.processing import process_images

    first = prompting.standin.img2img(_image(GREEN), denoising_strength=0.9).pixels
    prompted: list[list[bytes]] = []

    def batch(p: Any) -> Any:
        results = [process_images(p) for _ in range(3)]
        prompted.extend([[image.tobytes() for image in result.images] for result in results])
        assert "sample" not in vars(p)
        return results[-1]

    prompting.patch.setattr(api, "process_images", batch)
    with prompting.watch() as calls:
        prompting.run(UNIT, route="img2img", denoising_strength=0.9)
    assert prompted[0] == prompted[1] == prompted[2]
    assert prompted[0] != first
    prompting.check_rows(calls)


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM"])
@pytest.mark.parametrize("window", [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_a_window_is_a_part_of_each_passes_steps(prompting: Prompting, sampler: str, window: Any) -> None:
    start, end = window
    calls = check_job(prompting, {**UNIT, "start": start, "end": end}, steps=4, sampler_name=sampler)
    inside = [start <= call.fraction and (call.fraction < end or end == 1) for call in calls]
    assert with_image(calls) == inside
    assert True in inside
    assert False in inside


def test_a_window_starts_afresh_in_the_hires_pass(prompting: Prompting) -> None:
    calls = check_job(prompting, {**UNIT, "end": 0.5}, **HIRES)
    assert with_image(calls) == [True, False, True, False]


def test_a_window_of_a_sampler_without_a_total_follows_the_timesteps(prompting: Prompting) -> None:
    with prompting.watch() as calls:
        prompting.run({**UNIT, "end": 0.5}, sampler_name="DPM adaptive")
    acted = with_image(calls)
    assert acted[0]
    assert not acted[-1]


def test_four_units_act_together(prompting: Prompting) -> None:
    units = (
        {"images": [RED], "weight": 0.7},
        {"images": [BLUE, GREEN], "weight": 0.4, "adapter": "ip-adapter_sd15"},
        {"images": [BLUE, RED], "weight": -0.3, "combine": "average", "end": 0.5, "crop": "pad"},
        {"images": [GREEN], "weight": 1.5, "start": 0.5, "uncond": "noise"},
    )
    calls = check_job(prompting, *units)
    assert len(prompting.prepared) == 4
    assert all(with_image(calls))


def test_a_cond_row_alone_has_the_positive_image(prompting: Prompting) -> None:
    """Unit with zero uncond: negative rows stay untouched, prompt rows do not."""
    with prompting.watch() as calls:
        prompting.run({**UNIT, "uncond": "zeros"})
    for call in calls:
        for _, added, _ in call.layers.values():
            for row, kind in zip(added, call.kinds, strict=True):
                assert bool(row.abs().max() > 0) == (kind == COND)


def test_pictures_without_units_are_those_of_the_host_alone(prompting: Prompting) -> None:
    plain = prompting.run()
    assert prompting.run(UNIT).pixels != plain.pixels
    assert prompting.run({**UNIT, "weight": 0}).pixels == plain.pixels
    assert prompting.run().pixels == plain.pixels


def test_the_infotext_describes_what_ran(prompting: Prompting) -> None:
    off = {"images": [BLUE], "enabled": False}
    result = prompting.run({**UNIT, "start": 0.25}, {"images": [BLUE], "weight": 0}, off)
    from modules.infotext_utils import parse_generation_parameters

    params = parse_generation_parameters(result.infotexts[0])
    ran = json.loads(params["IP-Adapter unit 1"])
    choice = prompting.prepared[0].choice
    assert ran["ran"] == {"file": choice.name, "hash": choice.fingerprint[:10], "encoder": choice.encoder.name}
    assert [f"sha256:{digest}".endswith(prompting.prepared[0].digests[0][-64:]) for digest in ran["refs"]] == [True]
    assert [key for key in params if key.startswith("IP-Adapter")] == ["IP-Adapter unit 1"]


def _image(text: str) -> Image.Image:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(text)))
