"""Regions that follow from faces: grown, cut between neighbours, feathered, and the same whichever unit comes first."""

from __future__ import annotations

import math
import random
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lib_ipadapter.encoders.face_alignment import TEMPLATE, TEMPLATE_BOX, box_of
from lib_ipadapter.encoders.keypoints import Box
from lib_ipadapter.hosts.crops import Crop
from lib_ipadapter.library.errors import KeypointsError, UnsupportedHostStateError
from lib_ipadapter.session.keypoints import FaceKeypoints, Frame, lay, lay_box
from lib_ipadapter.session.people import GROWTH, draw_masks, face_regions, told_regions
from lib_ipadapter.session.prepare import PreparedUnit
from lib_ipadapter.session.regions import ReadyRegion
from lib_ipadapter.units.regions import parse_region
from lib_ipadapter.units.unit import Unit
from tests.encoders.face_pictures import DrawnFace

SIZE = (600, 400)
FRAME = Frame(SIZE)
SETTINGS = {"intent": "instantid", "images": ("x",)}


def at(x: float, y: float, width: float, height: float | None = None) -> FaceKeypoints:
    """A face found around a point of a photo that is as large as the picture."""
    tall = height or width
    box = (x - width / 2, y - tall / 2, x + width / 2, y + tall / 2)
    return FaceKeypoints("pose", DrawnFace(x, y, min(width, tall)).keypoints, SIZE, box)  # type: ignore[arg-type]


def unit(number: int, face: FaceKeypoints | None, **fields: Any) -> PreparedUnit:
    made = Unit(**(SETTINGS | fields))
    region = parse_region(made.region)
    ready = ReadyRegion(region, made.feather, region.text) if region.box and not region.is_everywhere else None
    return PreparedUnit(number, made, None, (), None, {}, region=ready, face=face)  # type: ignore[arg-type]


def units(*faces: FaceKeypoints, **fields: Any) -> list[PreparedUnit]:
    return [unit(number, face, **fields) for number, face in enumerate(faces, 1)]


def regions(*people: PreparedUnit) -> dict[int, Box]:
    return face_regions(people, FRAME, SIZE)


def masks(*people: PreparedUnit, canvas: tuple[int, int] = SIZE) -> dict[int, torch.Tensor]:
    p = SimpleNamespace(width=SIZE[0], height=SIZE[1])
    return draw_masks(p, people, people, (canvas[1], canvas[0]))


def grown(face: FaceKeypoints) -> Box:
    assert face.box is not None
    left, top, right, bottom = face.box
    x, y, across, down = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    half = GROWTH / 2
    return x - half * across, y - half * down, x + half * across, y + half * down


def has_common_pixel(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) - max(one[0], other[0]) > 1e-9 and min(one[3], other[3]) - max(one[1], other[1]) > 1e-9


# --- where ---


def test_faces_far_apart_have_their_own_box_grown() -> None:
    left, right = at(120, 200, 80, 100), at(480, 220, 60, 90)
    assert regions(*units(left, right)) == {1: pytest.approx(grown(left)), 2: pytest.approx(grown(right))}


def test_who_does_not_reach_a_neighbour_is_not_cut() -> None:
    """Half-way lies inside of the large face's box, grown, and the small one's does not come near it."""
    large, small = at(170, 200, 240), at(450, 200, 20)
    assert regions(*units(large, small))[1] == pytest.approx(grown(large))
    assert grown(large)[2] > (290 + 440) / 2


def test_neighbours_are_parted_half_way_between_their_faces() -> None:
    left, right = at(200, 200, 100), at(350, 210, 120)
    found = regions(*units(left, right))
    cut = (250 + 290) / 2
    assert (found[1][2], found[2][0]) == (cut, cut)
    assert found[1] == pytest.approx((*grown(left)[:2], cut, grown(left)[3]))
    assert found[2] == pytest.approx((cut, *grown(right)[1:]))


def test_faces_one_above_the_other_are_parted_level() -> None:
    found = regions(*units(at(300, 120, 100), at(330, 280, 100)))
    assert found[1][3] == found[2][1] == 200
    assert found[1][2] > found[2][0]


def test_overlapping_faces_each_keep_their_middle() -> None:
    """A child's small face before a large one: half-way between the boxes would lie beyond the child's middle."""
    found = regions(*units(at(300, 200, 200), at(390, 260, 60)))
    assert found[1][2] == found[2][0] == pytest.approx(300 + 90 * 200 / 260)
    assert found[2][0] < 390


@pytest.mark.parametrize("seed", range(60))
def test_no_two_regions_have_a_common_pixel_whoever_comes_first(seed: int) -> None:
    at_random = random.Random(seed)
    faces: list[FaceKeypoints] = []
    while len(faces) < at_random.randint(2, 5):
        width = at_random.uniform(30, 160)
        face = at(at_random.uniform(0, 600), at_random.uniform(0, 400), width, width * at_random.uniform(0.8, 1.4))
        try:
            regions(*units(*faces, face))
        except KeypointsError:
            continue
        faces.append(face)
    found = regions(*units(*faces))
    assert len(found) == len(faces)
    for one, other in permutations(found.values(), 2):
        assert not has_common_pixel(one, other)
    for number, face in enumerate(faces, 1):
        (left, top, right, bottom), (x1, y1, x2, y2) = found[number], face.box or (0, 0, 0, 0)
        assert left < (x1 + x2) / 2 < right
        assert top < (y1 + y2) / 2 < bottom
    assert regions(*units(*faces[::-1])) == {len(faces) + 1 - number: box for number, box in found.items()}
    feathers = [at_random.choice([0.0, 0.02, 0.1, 0.4]) for _ in faces]
    people = [unit(n, face, feather=feather) for n, (face, feather) in enumerate(zip(faces, feathers, strict=True), 1)]
    drawn = masks(*people, canvas=(296, 200))
    assert float(sum(drawn.values()).max()) <= 1 + 1e-6  # type: ignore[union-attr]
    backwards = masks(*people[::-1], canvas=(296, 200))
    assert all(torch.equal(mask, backwards[number]) for number, mask in drawn.items())


def test_faces_at_the_same_place_stop_the_job() -> None:
    with pytest.raises(KeypointsError, match=r"^Units 1 and 2 put their faces at the same place, 150,150 to 250,250"):
        regions(*units(at(200, 200, 100), at(235, 190, 100)))
    assert regions(*units(at(200, 200, 100), at(235, 190, 100), region="everywhere")) == {}
    assert regions(*units(at(200, 200, 100), at(245, 190, 100)))


# --- for whom ---


def test_a_unit_alone_acts_everywhere_unless_it_asks_for_its_face() -> None:
    face = at(200, 200, 100)
    assert masks(unit(1, face)) == {}
    assert masks(unit(1, face), unit(2, None, intent="image")) == {}, "another kind of unit is no person"
    alone = masks(unit(1, face, region="face", feather=0))[1]
    expected = torch.zeros(SIZE[1], SIZE[0])
    expected[110:290, 110:290] = 1
    assert torch.equal(alone, expected)


def test_a_person_with_a_region_of_its_own_keeps_it_and_is_a_neighbour() -> None:
    left, right = at(200, 200, 100), at(350, 210, 120)
    found = regions(unit(1, left, region="left"), unit(2, right))
    assert list(found) == [2]
    assert found[2][0] == 270
    drawn = masks(unit(1, left, region="left", feather=0), unit(2, right, feather=0))
    assert torch.equal(drawn[1][0], torch.cat([torch.ones(300), torch.zeros(300)]))


def test_a_unit_that_is_off_in_a_pass_keeps_its_place() -> None:
    everybody = units(at(200, 200, 100), at(350, 210, 120))
    p = SimpleNamespace(width=SIZE[0], height=SIZE[1])
    alone = draw_masks(p, everybody, everybody[1:], (SIZE[1], SIZE[0]))
    assert list(alone) == [2]
    assert torch.equal(alone[2], masks(*everybody)[2])


def test_without_a_known_canvas_a_place_is_refused() -> None:
    everybody = units(at(200, 200, 100), at(350, 210, 120))
    with pytest.raises(UnsupportedHostStateError, match="how large it samples"):
        draw_masks(SimpleNamespace(width=600, height=400), everybody, everybody, None)


# --- masks ---


@pytest.mark.parametrize("feather", [0.0, 0.05, 0.2])
def test_between_neighbours_the_masks_add_up_to_one(feather: float) -> None:
    drawn = masks(*units(at(200, 200, 100), at(350, 200, 100), feather=feather))
    row = drawn[1][200] + drawn[2][200]
    torch.testing.assert_close(row[180:400], torch.ones(220), atol=1e-6, rtol=0)
    wide = max(1, round(feather * 400))
    assert drawn[1][200, 275 - wide // 2 - 1 : 275 + wide // 2 + 1].diff().le(0).all()
    assert drawn[1][200, : 275 - wide // 2][150:].eq(1).all()
    assert drawn[1][200, 275 + wide // 2 + 1 :].eq(0).all()


def test_feathers_of_two_widths_add_up_to_one_at_most() -> None:
    people = [unit(1, at(200, 200, 100), feather=0.3), unit(2, at(350, 200, 100), feather=0.0)]
    drawn = masks(*people)
    assert float((drawn[1] + drawn[2]).max()) <= 1 + 1e-6
    assert drawn[2][200, 276:].max() > 0.4


def test_three_feathers_over_each_other_are_the_same_in_any_order() -> None:
    """A sum of three in floating point depends on its order; the masks do not."""
    people = [at(417, 264, 99), at(205, 100, 113), at(288, 252, 90)]
    feathers = {417: 0.5, 205: 0.3, 288: 0.1}
    drawn: list[dict[int, torch.Tensor]] = []
    for order in permutations(people):
        found = masks(*(unit(n, face, feather=feathers[round(face.box[0] + face.box[2]) // 2])  # type: ignore[index]
                        for n, face in enumerate(order, 1)))  # fmt: skip
        drawn.append({people.index(face): found[n] for n, face in enumerate(order, 1)})
    assert all(torch.equal(other[n], mask) for other in drawn[1:] for n, mask in drawn[0].items())


def test_a_later_pass_draws_the_same_region_on_its_canvas() -> None:
    people = units(at(120, 200, 80), at(480, 220, 60), feather=0.1)
    small, large = masks(*people), masks(*people, canvas=(1200, 800))
    shrunk = torch.nn.functional.avg_pool2d(large[1][None], 2)[0]
    assert (shrunk - small[1]).abs().max() < 0.05


def test_a_pass_of_another_shape_cuts_the_middle_as_the_keypoints_are() -> None:
    face = at(300, 200, 80)
    points, box = lay(face, FRAME, (400, 400), "crop"), lay_box(face, FRAME, (400, 400), "crop")
    assert box == pytest.approx((160, 160, 240, 240))
    assert points[2][0] == pytest.approx(200, abs=1)


@pytest.mark.parametrize("canvas", [(320, 320), (320, 256)], ids=str)
def test_only_masked_lays_box_and_keypoints_alike(canvas: tuple[int, int]) -> None:
    """A crop of another shape than the canvas is fitted into it, as the hosts fit the picture."""
    frame = Frame(SIZE, Crop(SIZE, (200, 100, 160, 160)))
    face = at(280, 180, 80)
    scale = canvas[1] / 160
    left = canvas[0] / 2 - 80 * scale
    points, box = lay(face, frame, canvas, "crop"), lay_box(face, frame, canvas, "crop")
    assert box == pytest.approx((left + 40 * scale, 40 * scale, left + 120 * scale, 120 * scale))
    for (x, y), (found_x, found_y) in zip(face.points, points, strict=True):
        assert (left + (x - 200) * scale, (y - 100) * scale) == pytest.approx((found_x, found_y))
    picture = Image.new("RGB", SIZE)
    p = SimpleNamespace(
        width=canvas[0], height=canvas[1], image_mask=picture, inpaint_full_res=True, init_images=[picture],
        paste_to=(200, 100, 160, 160),
    )  # fmt: skip
    one = unit(1, face, region="face", feather=0)
    drawn = draw_masks(p, [one], [one], (canvas[1], canvas[0]))[1]
    expected = torch.zeros(canvas[1], canvas[0])
    across = slice(round(left + 8 * scale), round(left + 152 * scale))
    expected[round(8 * scale) : round(152 * scale), across] = 1
    assert (drawn - expected).abs().sum() <= 2 * (canvas[0] + canvas[1])
    assert told_regions(p, [one]) == {1: ",".join(
        f"{round(part, 3):g}" for part in (
            (left + 8 * scale) / canvas[0], 8 * scale / canvas[1], 144 * scale / canvas[0], 144 * scale / canvas[1]
        )
    )}  # fmt: skip


# --- given points ---


def test_given_points_have_the_box_of_a_face_that_has_them() -> None:
    for scale, tilt in ((1.0, 0.0), (2.5, 0.0), (0.5, 90.0)):
        cos, sin = scale * math.cos(math.radians(tilt)), scale * math.sin(math.radians(tilt))
        points = tuple((200 + x * cos - y * sin, 100 + x * sin + y * cos) for x, y in TEMPLATE)
        corners = [(x, y) for x in TEMPLATE_BOX[::2] for y in TEMPLATE_BOX[1::2]]
        laid = [(200 + x * cos - y * sin, 100 + x * sin + y * cos) for x, y in corners]
        expected = (*map(min, zip(*laid, strict=True)), *map(max, zip(*laid, strict=True)))
        assert box_of(points) == pytest.approx(expected, abs=1e-3)  # type: ignore[arg-type]
        given = FaceKeypoints("given", points, None)
        assert lay_box(given, FRAME, SIZE, "crop") == pytest.approx(expected, abs=1e-3)


def test_one_point_five_times_has_no_size() -> None:
    with pytest.raises(KeypointsError, match="all lie at 20, 30"):
        lay_box(FaceKeypoints("given", ((20, 30),) * 5, None), FRAME, SIZE, "crop")


def test_a_grown_face_has_its_hair_and_chin() -> None:
    """FFHQ's square around the template's face (download_ffhq.py, recreate_aligned_images), written out."""
    (ax, ay), (bx, by), _, (cx, cy), (dx, dy) = TEMPLATE
    eyes, mouth = ((ax + bx) / 2, (ay + by) / 2), ((cx + dx) / 2, (cy + dy) / 2)
    half = max(2.0 * math.dist((ax, ay), (bx, by)), 1.8 * math.dist(eyes, mouth))
    x, y = (eye + 0.1 * (lip - eye) for eye, lip in zip(eyes, mouth, strict=True))
    left, top, right, bottom = grown(FaceKeypoints("given", (), None, TEMPLATE_BOX))
    assert left < x - half < x + half < right
    assert top < y - half < y + half < bottom
