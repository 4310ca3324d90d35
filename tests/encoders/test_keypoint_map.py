"""The drawn map against the official drawing, written out here from the paper's code, pixel for pixel."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lib_ipadapter.encoders.keypoint_map import as_hint, canvas_scale, draw_keypoints, official_canvas
from lib_ipadapter.encoders.keypoints import Keypoints
from lib_ipadapter.library.errors import MissingPackageError

cv2 = pytest.importorskip("cv2", reason="the hosts ship OpenCV")

OFFICIAL = [(1280, 1280), (832, 1280), (1280, 960), (320, 1280)]


def reference(points: Any, size: tuple[int, int], half_width: int = 4, radius: int = 10) -> np.ndarray:
    """One face on a float canvas: limbs towards point 2, the whole canvas darkened, dots on top."""
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    points = np.array(points)
    canvas = np.zeros([size[1], size[0], 3])
    for outer in (0, 1, 3, 4):
        xs, ys = points[[outer, 2], 0], points[[outer, 2], 1]
        length = ((xs[0] - xs[1]) ** 2 + (ys[0] - ys[1]) ** 2) ** 0.5
        turned = math.degrees(math.atan2(ys[0] - ys[1], xs[0] - xs[1]))
        middle = (int(np.mean(xs)), int(np.mean(ys)))
        outline = cv2.ellipse2Poly(middle, (int(length / 2), half_width), int(turned), 0, 360, 1)
        canvas = cv2.fillConvexPoly(canvas.copy(), outline, palette[outer])
    canvas = (canvas * 0.6).astype(np.uint8)
    for (x, y), colour in zip(points, palette, strict=True):
        canvas = cv2.circle(canvas.copy(), (int(x), int(y)), radius, colour, -1)
    return canvas


def face(size: tuple[int, int], seed: int) -> Keypoints:
    """A face of any size and turn, or points anywhere on the canvas."""
    rng = random.Random(seed)
    if seed % 2:
        points = [(rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(5)]
    else:
        side = min(size) * rng.uniform(0.02, 0.3)
        middle, turn = (rng.uniform(side, size[0] - side), rng.uniform(side, size[1] - side)), rng.uniform(-3, 3)
        shape = [(-0.5, -0.5), (0.5, -0.5), (0, 0), (-0.4, 0.6), (0.4, 0.6)]
        points = [
            (
                middle[0] + side * (x * math.cos(turn) - y * math.sin(turn)),
                middle[1] + side * (x * math.sin(turn) + y * math.cos(turn)),
            )
            for x, y in shape
        ]
    return tuple((x, y) for x, y in points)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", OFFICIAL, ids=str)
def test_the_official_drawing_at_the_official_canvas(size: tuple[int, int], seed: int) -> None:
    points = face(size, seed)
    found = draw_keypoints([points], size)
    assert found.dtype == np.uint8
    assert np.array_equal(found, reference(points, size))
    assert found.any()


@pytest.mark.parametrize(
    ("size", "half_width", "radius"),
    [((1024, 1024), 3, 8), ((512, 512), 2, 4), ((2048, 2048), 6, 16), ((832, 1216), 4, 10), ((64, 64), 1, 1)],
    ids=str,
)
def test_sizes_follow_the_canvas(size: tuple[int, int], half_width: int, radius: int) -> None:
    points = face(size, 1)
    assert np.array_equal(draw_keypoints([points], size), reference(points, size, half_width, radius))


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((1024, 1024), (1280, 1280)),
        ((512, 768), (832, 1280)),
        ((4000, 3000), (1280, 960)),
        ((832, 1216), (832, 1280)),
        ((1216, 832), (1280, 832)),
        ((100, 1000), (128, 1280)),
        ((1280, 832), (1280, 832)),
    ],
)
def test_the_official_canvas(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert official_canvas(size) == canvas


def test_the_scale_is_one_on_every_official_canvas() -> None:
    for width in range(256, 2048, 40):
        for height in range(256, 2048, 56):
            assert canvas_scale(official_canvas((width, height))) == 1.0
            assert canvas_scale((width, height)) == max(width, height) / 1280


def test_several_people_on_one_map() -> None:
    size = (1280, 832)
    people = [((200, 200), (300, 200), (250, 260), (210, 320), (290, 320)),
              ((700, 300), (800, 300), (750, 360), (710, 420), (790, 420))]  # fmt: skip
    alone = [draw_keypoints([person], size) for person in people]
    assert np.array_equal(draw_keypoints(people, size), np.maximum(*alone))
    assert np.array_equal(draw_keypoints(people, size), draw_keypoints(people[::-1], size))
    crossing = [people[0], tuple((x + 50, y + 30) for x, y in people[0])]
    found = draw_keypoints(crossing, size)  # type: ignore[arg-type]
    assert tuple(found[260, 250]) == (0, 0, 255)  # the first person's nose, under the second's limb otherwise
    assert not draw_keypoints([], size).any()


def test_what_lies_outside_the_canvas_is_cut_off() -> None:
    size, left, up = (512, 512), 212, 120
    person = ((200, 120), (320, 120), (260, 200), (210, 280), (310, 280))
    whole = draw_keypoints([person], size)
    cut = draw_keypoints([tuple((x - left, y - up) for x, y in person)], size)  # type: ignore[list-item]
    assert cut.any()
    assert np.array_equal(cut[: 512 - up, : 512 - left], whole[up:, left:])
    assert not draw_keypoints([tuple((x - 400, y) for x, y in person)], size).any()  # type: ignore[list-item]


def test_the_hint() -> None:
    picture = draw_keypoints([face((640, 320), 0)], (640, 320))
    hint = as_hint(picture)
    assert (hint.shape, hint.dtype) == ((1, 3, 320, 640), torch.float32)
    assert torch.equal((hint[0].permute(1, 2, 0) * 255).round().byte(), torch.from_numpy(picture))
    assert float(hint.max()) == 1.0


def test_opencv_is_imported_when_first_drawn() -> None:
    code = (
        "import sys, lib_ipadapter.encoders.keypoint_map as drawing; assert 'cv2' not in sys.modules;"
        "drawing.draw_keypoints([], (64, 64)); assert 'cv2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_opencv_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match="OpenCV"):
        draw_keypoints([], (64, 64))
