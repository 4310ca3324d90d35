"""Several people through the API of the stand-in host: who stands where in each pass, and what each one's part gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image

from tests.encoders.face_pictures import DrawnFace, face_picture
from tests.webui.prompting import WARNING, Prompting
from tests.webui.test_faces import ANNA, BERT, as_base64
from tests.webui.test_image_prompts_infotext import pasted_arguments, stored
from tests.webui.test_regions import levels
from tests.webui.watching import Call

FACES = [DrawnFace(200, 250, 180, 3), DrawnFace(430, 300, 200, 2, 12)]
GROUP = as_base64(Image.fromarray(face_picture(600, 600, FACES)))
FIRST = {"intent": "instantid", "images": [ANNA], "pose": [GROUP], "feather": 0}
SECOND = {"intent": "instantid", "images": [BERT], "keypoints": "pose", "weight": 0.6, "feather": 0}
SIZE = {"width": 128, "height": 128}
JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "img2img": {"route": "img2img", "denoising_strength": 0.8},
}


def record(result: Any, number: int) -> dict[str, Any]:
    from modules.infotext_utils import parse_generation_parameters

    return json.loads(parse_generation_parameters(result.infotexts[0])[f"IP-Adapter unit {number}"])


def check_cores(prompting: Prompting, calls: list[Call], regions: list[list[float]]) -> None:
    """In every call and layer, a place that lies in one unit's region has that unit's image attention alone."""
    units = list(prompting.prepared)
    assert [unit.number for unit in units] == [1, 2]
    for call in calls:
        height, width = 8 * call.size[0], 8 * call.size[1]
        cores = [0, 0]
        for key_id, (query, added, heads) in call.layers.items():
            level = levels(call.size)[query.shape[1]]
            for place, (x, y, across, down) in enumerate(regions):
                inside = torch.zeros(height, width)
                inside[round(y * height) + 1 : round((y + down) * height) - 1, round(x * width) + 1 :] = 1
                inside[:, round((x + across) * width) - 1 :] = 0
                core = torch.nn.functional.adaptive_avg_pool2d(inside[None], level).flatten() == 1
                cores[place] += int(core.sum())
                prompting.prepared[:] = [units[place]]
                alone = prompting.image_attention(key_id, query, call.kinds, call.fraction, heads)
                torch.testing.assert_close(added[:, core], alone[:, core], atol=2e-5, rtol=1e-4)
        assert min(cores) > 20
    prompting.prepared[:] = units


@pytest.mark.parametrize("job", JOBS)
def test_one_group_photo_serves_two_units(prompting: Prompting, job: str) -> None:
    plain = prompting.run(**SIZE, **JOBS[job]).pixels
    with prompting.watch() as calls:
        result = prompting.run(FIRST, SECOND, **SIZE, **JOBS[job])
    regions = []
    for number, face in enumerate(FACES, 1):
        said = record(result, number)
        assert said["ran"]["pose_face"] == f"{number} of 2"
        assert said["ran"]["keypoints"] == "pose"
        assert len(said["pose"][0]) == 64
        regions.append([float(part) for part in said["ran"]["region"].split(",")])
        x, y, across, down = regions[-1]
        assert x < face.x / 600 < x + across
        assert y < face.y / 600 < y + down
    assert regions[0][0] + regions[0][2] <= regions[1][0] + 1e-3
    assert WARNING not in result.infotexts[0]
    check_cores(prompting, calls, regions)
    assert prompting.run(**SIZE, **JOBS[job]).pixels == plain


def test_the_order_of_units_does_not_matter(prompting: Prompting) -> None:
    one = {**FIRST, "pose_face": "1"}
    other = {**SECOND, "keypoints": "auto", "pose": [GROUP], "pose_face": "2"}
    auto = prompting.run(FIRST, SECOND, **SIZE).pixels
    assert prompting.run(one, other, **SIZE).pixels == prompting.run(other, one, **SIZE).pixels == auto
    assert prompting.run({**one, "region": "everywhere"}, {**other, "region": "everywhere"}, **SIZE).pixels != auto


def test_two_people_can_be_made_again_from_the_infotext(prompting: Prompting) -> None:
    anna, bert, group = (stored(prompting, picture) for picture in (ANNA, BERT, GROUP))
    first = prompting.run({**FIRST, "images": [anna], "pose": [group]}, {**SECOND, "images": [bert]})
    again = prompting.run(*pasted_arguments(first.infotexts[0]))
    assert again.pixels == first.pixels


def test_what_cannot_be_is_refused(prompting: Prompting) -> None:
    assert "3 units take a face of the pose photo, and 2 faces" in prompting.refused(FIRST, SECOND, SECOND, **SIZE)
    assert "at the same place" in prompting.refused({**FIRST, "pose": []}, {**SECOND, "keypoints": "auto"}, **SIZE)
    assert "no InstantID adapter" in prompting.refused({"images": [ANNA], "region": "face"})
    assert "pose_face is '1;2'" in prompting.refused({**FIRST, "pose_face": "1;2"})
