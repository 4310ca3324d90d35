"""Regions as masks of a canvas: boxes, edges, drawings, crops, and drawings that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lib_ipadapter.hosts.crops import Crop
from lib_ipadapter.library.errors import BadImageError, UnsupportedHostStateError
from lib_ipadapter.session.regions import LONGEST_SIDE, canvas_of, draw_region, read_region
from lib_ipadapter.units.images import ImageStore, digest
from lib_ipadapter.units.regions import PRESETS
from lib_ipadapter.units.unit import Unit
from tests.e2e.client import encoded

CANVAS = (96, 160)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path, 10**7)


def mask(
    region: str, feather: float = 0.0, canvas: tuple[int, int] = CANVAS, crop: Crop | None = None
) -> Tensor:
    ready = read_region(Unit(region=region, feather=feather), ImageStore(Path("nowhere"), 0))
    assert ready is not None
    return draw_region(ready, canvas, crop)


def drawing(size: tuple[int, int], box: tuple[int, int, int, int]) -> str:
    """Base64 of a black picture with a white rectangle, edges given as (left, top, right, bottom)."""
    picture = Image.new("L", size)
    picture.paste(255, box)
    return encoded(picture)


# --- boxes ---


def test_a_half_is_exactly_that() -> None:
    expected = torch.zeros(CANVAS)
    expected[:, :80] = 1
    assert torch.equal(mask("left"), expected)
    assert torch.equal(mask("right"), 1 - expected)
    expected = torch.zeros(CANVAS)
    expected[24:72, 40:120] = 1
    assert torch.equal(mask("centre"), expected)


def test_a_box_that_cuts_pixels_counts_them_in_part() -> None:
    assert mask("0.1003,0.205,0.333,0.3").sum() == pytest.approx(0.333 * 0.3 * 96 * 160, rel=1e-4)


@pytest.mark.parametrize("feather", [0.0, 0.03, 0.1, 0.5])
@pytest.mark.parametrize(
    "parts",
    [["left", "right"], ["top", "bottom"], ["left third", "middle third", "right third"], ["0,0,0.3,1", "0.3,0,0.7,1"]],
    ids=" ".join,
)
@pytest.mark.parametrize("canvas", [CANVAS, (168, 72)], ids=str)
def test_neighbours_add_up_to_the_whole(parts: list[str], feather: float, canvas: tuple[int, int]) -> None:
    whole = sum(mask(part, feather, canvas) for part in parts)
    torch.testing.assert_close(whole, torch.ones(canvas), atol=1e-6, rtol=0)


def test_an_edge_is_a_ramp_half_inside_and_half_outside() -> None:
    row = mask("left", 0.25)[0]  # a quarter of 96 pixels: from 68 to 92
    expected = (1 - (torch.arange(160) + 0.5 - 68) / 24).clamp(0, 1)
    torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)
    assert row[:68].eq(1).all()
    assert row[92:].eq(0).all()


def test_nothing_fades_at_the_pictures_border() -> None:
    left = mask("left", 0.5)
    assert left[:, 0].eq(1).all()
    assert torch.equal(left[0], left[-1])


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "everywhere"])
@pytest.mark.parametrize("feather", [0.0, 0.2])
def test_masks_stay_between_nothing_and_all(name: str, feather: float) -> None:
    drawn = mask(name, feather)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() == pytest.approx(1, abs=1e-3)
    assert drawn.min() < 0.5


# --- drawings ---


@pytest.mark.parametrize("feather", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("size", [(160, 96), (320, 192), (80, 48)], ids=str)
def test_a_drawn_rectangle_is_the_box(size: tuple[int, int], feather: float) -> None:
    width, height = size
    drawn = mask(drawing(size, (width // 4, 0, width // 2, height // 2)), feather)
    difference = (drawn - mask("0.25,0,0.25,0.5", feather)).abs()
    # Eight bits, and where the drawing is scaled, a pixel of it.
    assert difference.mean() < 0.012
    assert difference.max() < (0.03 if size == (160, 96) else 0.51)


def test_a_drawing_is_stretched_over_the_picture() -> None:
    drawn = mask(drawing((100, 100), (0, 0, 50, 100)))
    assert (drawn - mask("left")).abs().mean() < 0.01


def test_what_is_transparent_does_not_act(store: ImageStore) -> None:
    picture = Image.new("RGBA", (160, 96), (255, 255, 255, 0))
    ImageDraw.Draw(picture).rectangle((0, 0, 79, 95), fill=(255, 255, 255, 255))
    assert torch.equal(mask(encoded(picture)), mask("left"))


def test_a_stored_drawing_is_found_and_named_by_its_digest(store: ImageStore) -> None:
    import base64

    data = base64.b64decode(drawing((64, 64), (0, 0, 32, 64)))
    ready = read_region(Unit(region=store.put(data)), store)
    inline = read_region(Unit(region="data:image/png;base64," + base64.b64encode(data).decode()), store)
    assert ready is not None
    assert inline is not None
    assert ready.text == inline.text == digest(data)
    assert torch.equal(draw_region(ready, CANVAS, None), draw_region(inline, CANVAS, None))


def test_a_huge_drawing_is_kept_small(store: ImageStore) -> None:
    ready = read_region(Unit(region=drawing((6000, 100), (0, 0, 3000, 100))), store)
    assert ready is not None
    assert ready.drawing is not None
    assert max(ready.drawing.size) == LONGEST_SIDE
    assert (draw_region(ready, CANVAS, None) - mask("left", 0.05)).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (encoded(Image.new("L", (64, 64))), "black everywhere"),
        (encoded(Image.new("RGBA", (64, 64), (255, 255, 255, 0))), "black everywhere"),
        ("sha256:" + "0" * 64, "the region's picture: .*sha256"),
        ("data:image/png;base64,AAAA", "the region's picture is not a picture"),
        ("data:image/png;base64,%%%", "the region's picture: .*cannot be read"),
    ],
    ids=["black", "transparent", "not stored", "no picture", "no base64"],
)
def test_a_drawing_that_cannot_be_used_is_named(store: ImageStore, region: str, says: str) -> None:
    with pytest.raises(BadImageError, match=says):
        read_region(Unit(region=region), store)


def test_everywhere_is_no_region(store: ImageStore) -> None:
    assert read_region(Unit(), store) is None
    assert read_region(Unit(region="0,0,1,1"), store) is None


# --- crops ---


@pytest.mark.parametrize("region", ["left", "middle third", "0.31,0.2,0.4,0.33"])
@pytest.mark.parametrize("feather", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_crop_shows_its_part_of_the_region(region: str, feather: float, scale: int) -> None:
    """The crop's mask, brought back to the picture's size, is that part of the whole picture's mask."""
    crop = Crop((160, 96), (40, 16, 64, 48))
    part = mask(region, feather, (48 * scale, 64 * scale), crop)
    whole = mask(region, feather, (96, 160))[16:64, 40:104]
    back = torch.nn.functional.avg_pool2d(part[None], scale)[0]
    torch.testing.assert_close(back, whole, atol=1e-5 if not feather else 0.02, rtol=0)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_crop_of_a_drawing(scale: int) -> None:
    crop = Crop((160, 96), (40, 16, 64, 48))
    drawn = mask(drawing((160, 96), (48, 0, 80, 48)), 0.1, (48 * scale, 64 * scale), crop)
    assert (drawn - mask("0.3,0,0.2,0.5", 0.1, (48 * scale, 64 * scale), crop)).abs().max() < 0.05


@pytest.mark.parametrize("drawn", [False, True])
def test_a_crop_of_another_shape_is_fitted_and_its_edge_goes_on(drawn: bool) -> None:
    """160 x 96 of a picture in a square canvas of 160: 32 rows above and below, as the hosts fill them."""
    crop = Crop((320, 192), (160, 96, 160, 96))
    region = drawing((320, 192), (160, 96, 240, 144)) if drawn else "0.5,0.5,0.25,0.25"
    part = mask(region, 0.0, (160, 160), crop)
    expected = torch.zeros(160, 160)
    expected[:80, :80] = 1
    torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)


def test_a_region_outside_of_the_crop_is_nothing() -> None:
    assert not mask("right", 0.0, (64, 64), Crop((160, 96), (0, 0, 64, 64))).any()
    assert mask("left", 0.0, (64, 64), Crop((160, 96), (0, 0, 64, 64))).eq(1).all()


# --- canvases ---


def test_a_canvas_is_the_latents_in_pixels() -> None:
    assert canvas_of(torch.zeros(2, 4, 65, 33)) == (520, 264)
    assert canvas_of(None) is None
    assert canvas_of(0.5) is None


def test_an_unknown_canvas_is_refused(store: ImageStore) -> None:
    ready = read_region(Unit(region="left"), store)
    assert ready is not None
    with pytest.raises(UnsupportedHostStateError, match="how large"):
        draw_region(ready, None, None)
