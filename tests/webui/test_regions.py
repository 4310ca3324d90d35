"""Units with regions on the stand-in host: every pass, crop and batch, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.e2e.client import encoded, picture
from tests.webui.prompting import BLUE, RED, Prompting
from tests.webui.test_image_prompts_infotext import pasted_arguments, stored
from tests.webui.watching import Call

SIZE = {"width": 72, "height": 104}
"""Latents of 9 x 13: odd in every level but the last."""
LEFT = {"images": [RED], "weight": 0.8, "region": "left", "feather": 0}
RIGHT = {"images": [BLUE], "weight": 0.6, "region": "right", "feather": 0}
PHOTO = encoded(picture((20, 200, 60), size=(160, 120)))
HOLE = Image.new("L", (160, 120))
HOLE.paste(255, (40, 30, 72, 62))
ONLY_MASKED = {
    "route": "img2img", "init_images": [PHOTO], "mask": encoded(HOLE), "mask_blur": 0, "inpaint_full_res": True,
    "inpaint_full_res_padding": 0, "denoising_strength": 0.9,
}  # fmt: skip


def halves(height: int, width: int) -> list[Tensor]:
    """The canvas's left and right half in pixels."""
    left = torch.zeros(height, width)
    left[:, : width // 2] = 1
    return [left, 1 - left]


def levels(size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """A level's height and width by its number of places."""
    sizes = [size]
    for _ in range(3):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return {height * width: (height, width) for height, width in sizes}


def check_regions(prompting: Prompting, calls: Sequence[Call], masks: Any = halves) -> None:
    """In every call and layer, what was added is each unit's image attention in its region, and nothing else.

    `masks(height, width)` are the units' regions on a canvas, in pixels.
    """
    assert calls
    units = list(prompting.prepared)
    for call in calls:
        drawn = masks(8 * call.size[0], 8 * call.size[1])
        assert len(drawn) == len(units)
        for key_id, (query, added, heads) in call.layers.items():
            level = levels(call.size)[query.shape[1]]
            expected, cores = torch.zeros_like(added), 0
            for unit, mask in zip(units, drawn, strict=True):
                prompting.prepared[:] = [unit]
                alone = prompting.image_attention(key_id, query, call.kinds, call.fraction, heads)
                places = torch.nn.functional.adaptive_avg_pool2d(mask[None], level).flatten()
                expected += alone * places[:, None]
                core = places == 1
                cores += int(core.sum())
                torch.testing.assert_close(added[:, core], alone[:, core], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(added, expected, atol=2e-5, rtol=1e-4)
            assert cores or min(level) < 3
            assert added.abs().max() > 0
    prompting.prepared[:] = units


def run(prompting: Prompting, *units: Any, **payload: Any) -> list[Call]:
    with prompting.watch() as calls:
        prompting.run(*units, **payload)
    return calls


def test_two_units_in_two_regions_of_a_batch(prompting: Prompting) -> None:
    calls = run(prompting, LEFT, RIGHT, batch_size=2, **SIZE)
    assert {call.size for call in calls} == {(13, 9)}
    check_regions(prompting, calls)


def test_each_pass_of_hires_fix_has_its_own_canvas(prompting: Prompting) -> None:
    hires = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
    calls = run(prompting, LEFT, RIGHT, **SIZE, **hires)
    assert [call.size for call in calls] == [(13, 9)] * 2 + [(26, 18)] * 2
    check_regions(prompting, calls)


def test_img2img_shows_the_whole_picture(prompting: Prompting) -> None:
    check_regions(prompting, run(prompting, LEFT, RIGHT, route="img2img", denoising_strength=0.9, **SIZE))


def test_only_masked_shows_a_part_of_the_region(prompting: Prompting) -> None:
    """The mask's hole, 32 x 32 from (40, 30), fills the canvas of 64 x 64; the regions meet at 56 of 160."""

    def masks(height: int, width: int) -> list[Tensor]:
        assert prompting.jobs[0].paste_to == (40, 30, 32, 32)
        assert (height, width) == (64, 64)
        return halves(height, width)

    check_regions(prompting, run(prompting, *only_masked_units("0,0,0.35,1", "0.35,0,0.65,1"), **ONLY_MASKED), masks)


def test_a_drawing_is_cut_as_a_box_is(prompting: Prompting) -> None:
    """The same regions drawn; enlarged with the crop, a drawing's edge is as wide as two of its pixels."""
    run(prompting, *only_masked_units("0,0,0.35,1", "0.35,0,0.65,1"), **ONLY_MASKED)
    boxes = prompting.latents[0]
    bars = [Image.new("L", (160, 120)) for _ in range(2)]
    bars[0].paste(255, (0, 0, 56, 120))
    bars[1].paste(255, (56, 0, 160, 120))
    run(prompting, *only_masked_units(*map(encoded, bars)), **ONLY_MASKED)
    drawn = prompting.latents[0]
    run(prompting, *only_masked_units(*map(encoded, bars[::-1])), **ONLY_MASKED)
    assert (drawn - boxes).abs().mean() < 0.1 * (drawn - prompting.latents[0]).abs().mean()


def only_masked_units(*regions: str) -> list[dict[str, Any]]:
    return [{**unit, "region": region} for unit, region in zip((LEFT, RIGHT), regions, strict=True)]


def test_a_region_that_is_not_inpainted_is_said_and_not_claimed(prompting: Prompting) -> None:
    result = prompting.run({**LEFT, "region": "right third"}, RIGHT | {"region": "left"}, **ONLY_MASKED)
    said = result.info["extra_generation_params"]
    assert "IP-Adapter unit 1" not in said
    assert json.loads(said["IP-Adapter unit 2"])["region"] == "left"
    assert "Unit 1 did not act: no part of its region" in said["IP-Adapter warning"]


def test_the_whole_picture_inpainted_shows_the_whole_region(prompting: Prompting) -> None:
    calls = run(prompting, LEFT, RIGHT, **ONLY_MASKED | {"inpaint_full_res": False})
    check_regions(prompting, calls)


def test_a_blank_mask_samples_the_whole_picture(prompting: Prompting) -> None:
    calls = run(prompting, LEFT, RIGHT, **ONLY_MASKED | {"mask": encoded(Image.new("L", (160, 120)))})
    check_regions(prompting, calls)


def test_the_order_of_units_does_not_matter(prompting: Prompting) -> None:
    latents = []
    for units in ((LEFT, RIGHT), (RIGHT, LEFT)):
        run(prompting, *units, **SIZE)
        latents.append(prompting.latents[0])
    torch.testing.assert_close(latents[0], latents[1], atol=1e-4, rtol=1e-4)


def test_one_reference_in_both_halves_is_that_reference_everywhere(prompting: Prompting) -> None:
    latents = []
    for units in ([{**LEFT, "feather": 0.2}, {**LEFT, "feather": 0.2, "region": "right"}], [{**LEFT, "region": ""}]):
        run(prompting, *units, **SIZE)
        latents.append(prompting.latents[0])
    torch.testing.assert_close(latents[0], latents[1], atol=1e-3, rtol=1e-3)


def test_a_region_changes_its_side_of_the_picture_most(prompting: Prompting) -> None:
    size = {"width": 128, "height": 64}
    plain, left = (
        np.asarray(prompting.run(*units, **size).images[0], dtype=float) for units in ([], [{**LEFT, "weight": 1}])
    )
    change = abs(left - plain).mean(axis=(0, 2))
    assert change[:48].mean() > change[-48:].mean() > 0


def test_a_picture_with_regions_can_be_made_again_from_its_infotext(prompting: Prompting) -> None:
    drawing = Image.new("L", (64, 64))
    drawing.paste(255, (8, 8, 40, 56))
    mask, red, blue = (stored(prompting, one) for one in (encoded(drawing), RED, BLUE))
    units = [
        {"images": [red], "region": mask, "feather": 0.1},
        {"images": [blue], "region": "0.5,0.25,0.4,0.5"},
        {"images": [red, blue], "region": "right third", "weight": 0.3},
    ]
    first = prompting.run(*units)
    args = pasted_arguments(first.infotexts[0])
    again = prompting.run(*args)
    assert again.pixels == first.pixels
    assert again.infotexts == first.infotexts
    assert prompting.run(*[{**unit, "region": ""} for unit in units]).pixels != first.pixels


def test_a_drawing_sent_inline_is_named_by_its_digest(prompting: Prompting) -> None:
    drawing = Image.new("L", (64, 64))
    drawing.paste(255, (8, 8, 40, 56))
    sent = encoded(drawing)
    result = prompting.run({"images": [RED], "region": f"data:image/png;base64,{sent}"})
    said = json.loads(result.info["extra_generation_params"]["IP-Adapter unit 1"])
    from lib_ipadapter.units.images import digest

    assert said["region"] == digest(base64.b64decode(sent))
    assert sent[:60] not in result.infotexts[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"region": "lefft"}, "Did you mean left?"),
        ({"region": "0.5,0,0.6,1"}, "reaches beyond the picture"),
        ({"region": 7}, "region is 7; it must be auto, face, everywhere, left, right"),
        ({"feather": 0.6}, "feather is 0.6; it must be a number from 0 to 0.5"),
        ({"mask": "left"}, "Did you mean region?"),
        ({"region": "sha256:" + "0" * 64}, "the region's picture"),
        ({"region": encoded(Image.new("L", (64, 64)))}, "black everywhere"),
        ({"region": "data:image/png;base64,AAAA"}, "the region's picture is not a picture"),
    ],
    ids=["misspelt", "outside", "a number", "feather", "another name", "not stored", "black", "no picture"],
)
def test_a_program_is_told_what_is_wrong(prompting: Prompting, fields: dict[str, Any], says: str) -> None:
    assert says in prompting.refused({"images": [RED], **fields})


def test_tiles_of_the_latents_stop_the_job(prompting: Prompting) -> None:
    """As MultiDiffusion calls the UNet: for a part of the picture at a time."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    whole = UNetModel.__call__

    def tiled(unet: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = [whole(unet, part, *args, **kwargs) for part in x.split(4, dim=-1)]
        return torch.cat(parts, dim=-1)

    prompting.patch.setattr(UNetModel, "__call__", tiled)
    prompting.run({**LEFT, "region": ""}, steps=1)
    sentence = prompting.refused(LEFT, steps=1)
    assert "drawn for a picture of 64x64 and the UNet was called for 32x64" in sentence
