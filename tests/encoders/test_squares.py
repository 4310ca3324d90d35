"""Framings: what each shows of a picture, at ordinary and at absurd sizes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.encoders import squares
from lib_ipadapter.encoders.squares import IMAGE_MEAN, IMAGE_STD, PAD_COLOUR, to_squares

FRAMINGS = ("centre", "pad", "stretch", "tiles")
SIZES = [(333, 517), (517, 333), (224, 224), (225, 224), (1000, 31), (1, 1), (1, 2), (10000, 3), (3, 10000), (1, 20000)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None, :], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.zeros((height, width))], axis=-1).astype(np.uint8))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


@pytest.mark.parametrize("how", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_squares(size: tuple[int, int], how: squares.Framing) -> None:
    image = noise(*size)
    cut = to_squares(image, 56, how)
    assert 1 <= len(cut) <= squares.MAX_TILES
    assert all(square.size == (56, 56) and square.mode == "RGB" for square in cut)


@pytest.mark.parametrize("size", [(200, 100), (100, 200)])
def test_pad_shows_everything_between_bars_of_no_content(size: tuple[int, int]) -> None:
    image = ramp(*size)
    values = levels(to_squares(image, 64, "pad")[0])
    values = values if size[0] > size[1] else values.transpose(1, 0, 2)
    assert (values[:16] == PAD_COLOUR).all()
    assert (values[48:] == PAD_COLOUR).all()
    inner = levels(image.resize((64, 32) if size[0] > size[1] else (32, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(values[16:48], inner if size[0] > size[1] else inner.transpose(1, 0, 2))
    normalised = (np.array(PAD_COLOUR) / 255 - IMAGE_MEAN) / IMAGE_STD
    assert np.abs(normalised).max() < 0.008


def test_stretch_shows_the_edges_and_centre_does_not() -> None:
    image = ramp(400, 100)
    stretched, centred = (levels(to_squares(image, 50, how)[0])[:, :, 0] for how in ("stretch", "centre"))
    assert stretched.min() < 5
    assert stretched.max() > 250
    assert centred.min() > 80
    assert centred.max() < 175


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((100, 100), 1),
        ((119, 100), 1),
        ((100, 119), 1),
        ((133, 100), 2),
        ((300, 200), 2),
        ((201, 100), 3),
        ((900, 100), 4),
    ],
)
def test_tile_count_follows_the_ratio(size: tuple[int, int], count: int) -> None:
    assert len(to_squares(noise(*size), 32, "tiles")) == count


def test_one_tile_of_a_nearly_square_picture_is_its_centre() -> None:
    image = noise(110, 100)
    assert np.array_equal(levels(to_squares(image, 32, "tiles")[0]), levels(to_squares(image, 32, "centre")[0]))


@pytest.mark.parametrize("tall", [False, True])
def test_tiles_start_and_end_at_the_edges_and_leave_no_gap(tall: bool) -> None:
    long, short = 250, 100
    values = [levels(tile) for tile in to_squares(ramp(short, long) if tall else ramp(long, short), 100, "tiles")]
    along = [tile[:, 50, 1] if tall else tile[50, :, 0] for tile in values]
    assert along[0][0] == 0
    assert along[-1][-1] == 255
    assert all(later[0] < earlier[-1] for earlier, later in pairwise(along))


@pytest.mark.parametrize("how", FRAMINGS)
def test_one_pixel_fills_its_square(how: squares.Framing) -> None:
    colour = (12, 200, 99)
    assert (levels(to_squares(Image.new("RGB", (1, 1), colour), 14, how)[0]) == colour).all()


@pytest.mark.parametrize("size", [(2000, 30), (30, 2000), (701, 10)])
def test_centre_of_a_strip_is_nearly_the_whole_resize(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(*size)
    region = levels(to_squares(image, 56, "centre")[0])
    monkeypatch.setattr(squares, "MAX_EXACT_RATIO", 1000)
    whole = levels(to_squares(image, 56, "centre")[0])
    assert np.abs(region - whole).max() <= 2


@pytest.mark.parametrize("how", FRAMINGS)
@pytest.mark.parametrize("size", [(3, 10000), (10000, 3)])
def test_strips_never_grow_into_huge_pictures(
    size: tuple[int, int], how: squares.Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    resize = Image.Image.resize

    def recorded(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        built.append(size[0] * size[1])
        return resize(self, size, *args, **options)  # type: ignore[arg-type]

    image = noise(*size)
    monkeypatch.setattr(Image.Image, "resize", recorded)
    to_squares(image, 448, how)
    assert 0 < max(built) <= 448 * 448


def test_what_cannot_be_framed_is_named() -> None:
    with pytest.raises(ValueError, match="mode RGBA"):
        to_squares(Image.new("RGBA", (4, 4)), 14, "centre")
    with pytest.raises(ValueError, match="0 pixels"):
        to_squares(Image.new("RGB", (4, 4)), 0, "centre")
    with pytest.raises(ValueError, match="'zoom'"):
        to_squares(Image.new("RGB", (4, 4)), 14, "zoom")  # type: ignore[arg-type]
