"""Keypoints from requests and pictures to the canvas: units, fits, crops, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lib_ipadapter.encoders.keypoints import (
    Keypoints,
    crop_keypoints,
    fit_keypoints,
    is_in_sight,
    read_keypoints,
    relative_keypoints,
)
from lib_ipadapter.library.errors import KeypointsError

FACE: Keypoints = ((40, 50), (60, 50), (50, 62), (43, 74), (57, 74))
RELATIVE: Keypoints = ((0.2, 0.5), (0.3, 0.5), (0.25, 0.62), (0.215, 0.74), (0.285, 0.74))


def close(found: Keypoints, expected: Any) -> bool:
    return np.allclose(found, expected)


def test_units() -> None:
    assert read_keypoints(FACE, (200, 100)) == FACE
    assert close(read_keypoints(RELATIVE, (200, 100)), FACE)
    assert close(read_keypoints([list(pair) for pair in RELATIVE], (200, 100), "relative"), FACE)
    assert close(read_keypoints(np.array(FACE, dtype=np.float32), (200, 100), "pixels"), FACE)
    tiny = ((0, 0), (1, 0), (1, 1), (0, 1), (1, 1))
    assert close(read_keypoints(tiny, (8, 6)), np.multiply(tiny, (8, 6)))
    assert read_keypoints(tiny, (8, 6), "pixels") == tiny


def test_there_and_back() -> None:
    assert close(read_keypoints(relative_keypoints(FACE, (200, 100)), (200, 100), "relative"), FACE)


@pytest.mark.parametrize(
    ("fit", "canvas", "eye"),
    [
        ("crop", (200, 100), (40, 50)),
        ("crop", (400, 200), (80, 100)),
        ("crop", (100, 100), (40 - 50, 50)),
        ("pad", (100, 100), (20, 25 + 25)),
        ("pad", (400, 100), (100 + 40, 50)),
        ("crop", (400, 100), (80, 100 - 50)),
        ("stretch", (100, 100), (20, 50)),
        ("stretch", (200, 400), (40, 200)),
    ],
)
def test_fits(fit: Any, canvas: tuple[int, int], eye: tuple[float, float]) -> None:
    """A picture of 200 x 100 onto the canvas, by hand: where its first eye lands, the face being flat enough to fit."""
    near = ((40.0, 50.0), *((x, 45 + 0.1 * y) for x, y in FACE[1:]))
    if eye[0] < 0:
        with pytest.raises(KeypointsError, match=r'first eye\) lies at -10, 50, outside the canvas of 100x100.*"pad"'):
            fit_keypoints(near, (200, 100), canvas, fit)
        return
    assert close(fit_keypoints(near, (200, 100), canvas, fit)[:1], [eye])


def test_crop_and_pad_keep_the_faces_shape() -> None:
    for fit in ("crop", "pad"):
        found = fit_keypoints(FACE, (100, 100), (120, 100), fit)
        across = math.dist(found[0], found[1]) / math.dist(FACE[0], FACE[1])
        down = math.dist(found[0], found[3]) / math.dist(FACE[0], FACE[3])
        assert across == pytest.approx(down) == pytest.approx(1.2 if fit == "crop" else 1.0)


def test_only_masked() -> None:
    found = crop_keypoints(FACE, (30, 40, 70, 80), (400, 800))
    assert close(found, [((x - 30) * 10, (y - 40) * 20) for x, y in FACE])
    assert is_in_sight(found, (400, 800))
    cut = crop_keypoints(FACE, (30, 40, 55, 80), (400, 800))
    assert is_in_sight(cut, (400, 800))
    assert not all(0 <= x <= 400 for x, _ in cut)
    assert not is_in_sight(crop_keypoints(FACE, (90, 90, 100, 100), (400, 800)), (400, 800))
    with pytest.raises(KeypointsError, match="empty"):
        crop_keypoints(FACE, (30, 40, 30, 80), (400, 800))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (None, "five pairs"),
        ("five points", "five pairs"),
        (FACE[:4], "five pairs"),
        ({0: 1, 1: 2, 2: 3, 3: 4, 4: 5}, "five pairs"),
        ([*FACE[:4], 3], r"second mouth corner is no pair"),
        ([*FACE[:4], (3, 4, 5)], "no pair"),
        ([*FACE[:4], (3, "4")], "no pair"),
        ([*FACE[:4], (True, 4)], "no pair"),
        ([*FACE[:2], (3, math.nan), *FACE[3:]], "the nose is no pair"),
        ([*FACE[:4], (3, 10**400)], "no pair"),
        ([*FACE[:4], (101, 4)], r"corner\) lies at 101, 4, outside the picture of 100x100: move it inside"),
        ([*FACE[:4], (50, -1)], "outside the picture"),
        ([(-0.1, 0.5), *RELATIVE[1:]], "outside the picture"),
    ],
)
def test_bad_points_are_refused(points: object, words: str) -> None:
    with pytest.raises(KeypointsError, match=words):
        read_keypoints(points, (100, 100))
