"""A region's text: every form reads as itself, and what is none of them says why."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from lib_ipadapter.library.errors import BadUnitError
from lib_ipadapter.units.regions import BOX_PATTERN, PICTURE_PATTERN, PRESETS, WHOLE, Box, is_picture, parse_region
from lib_ipadapter.units.unit import Unit

DIGEST = "sha256:" + "0a" * 32
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_name_and_label_are_it(name: str) -> None:
    label, box = PRESETS[name]
    for text in (name, label, f" {label.upper()} ", name.replace(" ", "_"), name.replace("centre", "center")):
        assert parse_region(text).text == name
        assert parse_region(text).box == box


@pytest.mark.parametrize("parts", [["left", "right"], ["top", "bottom"], ["left third", "middle third", "right third"]])
def test_presets_that_belong_together_cover_the_picture_once(parts: list[str]) -> None:
    boxes = [PRESETS[part][1] for part in parts]
    assert sum(box.width * box.height for box in boxes) == pytest.approx(1)
    for one, other in pairwise(boxes):
        assert (one.x + one.width, one.y) == pytest.approx((other.x, other.y)) or (
            one.x, one.y + one.height
        ) == pytest.approx((other.x, other.y))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "canonical", "box"),
    [
        ("0.1,0.2,0.3,0.4", "0.1,0.2,0.3,0.4", Box(0.1, 0.2, 0.3, 0.4)),
        (" .5 , 0, 0.50001, 1 ", "0.5,0,0.5,1", Box(0.5, 0.0, 0.5, 1.0)),
        ("0.33333,0,0.66667,1.0", "0.3333,0,0.6667,1", Box(0.3333, 0.0, 0.6667, 1.0)),
        ("0,0,1,1", "everywhere", WHOLE),
    ],
)
def test_boxes(text: str, canonical: str, box: Box) -> None:
    region = parse_region(text)
    assert (region.text, region.box) == (canonical, box)
    assert parse_region(region.text) == region
    assert region.is_everywhere == (box == WHOLE)
    assert not is_picture(region.text)
    assert "," not in region.text or re.search(BOX_PATTERN, region.text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (f" {DIGEST.upper()} ", DIGEST),
        (f"data:image/png;base64,{PIXELS}", f"data:image/png;base64,{PIXELS}"),
        (f"{PIXELS[:76]}\n{PIXELS[76:]}", f"{PIXELS[:76]}\n{PIXELS[76:]}"),
    ],
)
def test_pictures(text: str, canonical: str) -> None:
    assert parse_region(text).text == canonical
    assert is_picture(canonical)
    assert not parse_region(canonical).is_everywhere
    assert re.search(PICTURE_PATTERN, canonical)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("lefft", "Did you mean left"),
        ("0.5,0,0.6,1", "reaches beyond"),
        ("-0.1,0,0.5,1", "reaches beyond"),
        ("0,0,0,1", "no area"),
        ("1,0,0.0001,1", "no area"),
        ("0,0,0.5", "four numbers"),
        ("0,0,0.5,nan", "four numbers"),
        ("0,0,0.5,x", "four numbers"),
        ("C:\\mask.png", "none of these"),
        ("sha256:12", "none of these"),
        (5, "it must be auto, face, everywhere, left"),
        (True, "it must be auto, face, everywhere, left"),
        ([0, 0, 1, 1], "it must be auto, face, everywhere, left"),
    ],
)
def test_what_is_no_region_is_refused_by_name(value: object, says: str) -> None:
    with pytest.raises(BadUnitError, match=f"^region is .*{says}"):
        Unit.from_dict({"region": value})


@pytest.mark.parametrize("value", [None, [], ""])
def test_a_cleared_list_means_auto(value: object) -> None:
    assert Unit.from_dict({"region": value}) == Unit()


@pytest.mark.parametrize(
    ("text", "canonical"), [("auto", "auto"), (" Auto ", "auto"), ("", "auto"), ("  ", "auto"), ("Face", "face")]
)
def test_what_follows_from_faces_has_no_box_and_is_no_picture(text: str, canonical: str) -> None:
    region = parse_region(text)
    assert (region.text, region.box) == (canonical, None)
    assert not region.is_everywhere
    assert not region.is_picture
    assert parse_region(canonical) == region


def test_names_from_elsewhere_are_suggested() -> None:
    for name in ("mask", "effective_region_mask"):
        with pytest.raises(BadUnitError, match="Did you mean region"):
            Unit.from_dict({name: "left"})
