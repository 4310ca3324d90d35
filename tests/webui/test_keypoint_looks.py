"""The map on the page: on the shape of the picture to be made, with its points where a job would lay them."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.encoders.faces import Face
from lib_ipadapter.encoders.keypoint_map import COLOURS
from lib_ipadapter.library.errors import KeypointsError
from lib_ipadapter.webui.events import read_turn
from lib_ipadapter.webui.face_looks import FacePicture, FoundFaces
from lib_ipadapter.webui.keypoint_html import NAMES, editor_html
from lib_ipadapter.webui.keypoint_looks import MapLayout, map_of, map_of_points

POINTS = ((80, 40), (120, 40), (100, 60), (85, 80), (115, 80))
"""In a photo of 200 x 100."""
FRACTIONS = ((0.4, 0.4), (0.6, 0.4), (0.5, 0.6), (0.42, 0.8), (0.58, 0.8))


def photo() -> FacePicture:
    face = Face((60.0, 10.0, 140.0, 95.0), 0.9, np.array(POINTS, dtype=np.float32))
    return FacePicture("a", "reference 1", FoundFaces("", (200, 100), (face,)), 0)


def picture(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


@pytest.mark.parametrize(
    ("layout", "size", "points"),
    [
        (MapLayout(), (200, 100), [(x / 200, y / 100) for x, y in POINTS]),
        (MapLayout((1024, 512)), (1024, 512), [(x / 200, y / 100) for x, y in POINTS]),
        (MapLayout((512, 512), "crop"), (512, 512), [((x - 50) / 100, y / 100) for x, y in POINTS]),
        (MapLayout((512, 512), "pad"), (512, 512), [(x / 200, 0.25 + y / 200) for x, y in POINTS]),
        (MapLayout((512, 512), "stretch"), (512, 512), [(x / 200, y / 100) for x, y in POINTS]),
    ],
)
def test_a_photos_points_are_laid_into_the_picture_to_be_made(layout: MapLayout, size: object, points: object) -> None:
    drawn = map_of(photo(), layout)
    assert drawn.size == size
    np.testing.assert_allclose(drawn.points, points, atol=1e-6)
    assert max(picture(drawn.source).size) == 320


@pytest.mark.parametrize("points", [FRACTIONS, tuple((1000 * x, 500 * y) for x, y in FRACTIONS)])
def test_given_points_are_fractions_or_pixels_and_drawn_where_they_are(points: object) -> None:
    drawn = map_of_points(points, MapLayout((1000, 500)))
    np.testing.assert_allclose(drawn.points, FRACTIONS, atol=1e-6)
    shown = picture(drawn.source).convert("RGB")
    assert shown.size == (320, 160)
    assert [shown.getpixel((round(320 * x), round(160 * y))) for x, y in FRACTIONS] == list(COLOURS)


def test_points_outside_the_picture_are_refused_as_in_a_job() -> None:
    with pytest.raises(KeypointsError, match="outside"):
        map_of_points(((600, 10), *FRACTIONS[1:]), MapLayout((512, 512)))
    with pytest.raises(KeypointsError, match="pad"):
        map_of(photo(), MapLayout((100, 512)))


def test_every_point_has_a_handle_that_is_named() -> None:
    html = editor_html(map_of_points(FRACTIONS, MapLayout((1000, 500))), "<you>", given=True)
    assert html.count('class="ipadapter-dot"') == 5
    assert [name for name in NAMES if f'aria-label="{name}, ' in html] == list(NAMES)
    found = re.findall(r'data-x="([0-9.]+)" data-y="([0-9.]+)"', html)
    assert found == [(f"{x:.4f}", f"{y:.4f}") for x, y in FRACTIONS]
    assert "<you>" not in html
    assert "&lt;you&gt;, 1000" in html
    assert "Back to photo" in html
    assert "Back to photo" not in editor_html(map_of(photo(), MapLayout()), "reference 1", given=False)


@pytest.mark.parametrize(
    ("turn", "read"),
    [("3", (False, None)), ("3+", (True, None)), ("12@1024x768", (False, (1024, 768))), ("3+@64x64", (True, (64, 64))),
     ("", (False, None)), ("3@0x64", (False, None)), ("<b>", (False, None))],
)  # fmt: skip
def test_a_drawings_number_brings_the_size_along(turn: str, read: object) -> None:
    assert read_turn(turn) == read
