"""The picture of keypoints that IdentityNet is fed: limbs to the nose and a dot per point, per person.

`session` draws one map per person or one of several at the pass's canvas, shows it, and hands it to the net as a
tensor. Formula: official `draw_kps` (InstantID, pipeline_stable_diffusion_xl_instantid.py) with the sizes that belong
to its canvas, scaled to ours. Needs OpenCV, which every host ships; it is imported when first drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..library.errors import MissingPackageError
from .keypoints import Keypoints, Size, is_in_sight

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of the dots, in the order of the keypoints. A limb has the colour of its outer end, darkened."""

LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
LIMB_BRIGHTNESS = 0.6
LIMB_HALF_WIDTH = 4
DOT_RADIUS = 10

_SHORT_SIDE, _LONG_SIDE, _STEP = 1024, 1280, 64


def official_canvas(size: Size) -> Size:
    """The canvas that the official code would draw a picture of this size on (infer.py, resize_img).

    The short side becomes 1024, then the long one 1280, each rounded, and both go down to multiples of 64: so the
    long side is always 1280.
    """
    width, height = size
    ratio = _SHORT_SIDE / min(width, height)
    width, height = round(ratio * width), round(ratio * height)
    ratio = _LONG_SIDE / max(width, height)
    return round(ratio * width) // _STEP * _STEP, round(ratio * height) // _STEP * _STEP


def canvas_scale(canvas: Size) -> float:
    """How many times the official one a canvas is, by its long side: 1 where the official sizes hold."""
    return max(canvas) / max(official_canvas(canvas))


def draw_keypoints(people: Sequence[Keypoints], canvas: Size) -> NDArray[np.uint8]:
    """Draw people's keypoints, given in pixels of the canvas, on black: (H, W, 3) RGB.

    Dots of radius 10 and limbs of half-width 4 at the official canvas, in proportion elsewhere, at least one pixel.
    Limbs are drawn before all dots, so no person's limb covers another's dot. What lies outside the canvas is cut off;
    nobody gives a black picture.

    Raises: MissingPackageError without OpenCV.
    """
    people = [person for person in people if is_in_sight(person, canvas)]
    cv2 = _opencv()
    width, height = canvas
    scale = canvas_scale(canvas)
    half_width, radius = (max(1, round(scale * size)) for size in (LIMB_HALF_WIDTH, DOT_RADIUS))
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for person in people:
        for start, end in LIMBS:
            colour = tuple(int(LIMB_BRIGHTNESS * channel) for channel in COLOURS[start])
            cv2.fillConvexPoly(picture, _limb(cv2, person[start], person[end], half_width), colour)
    for person in people:
        for (x, y), colour in zip(person, COLOURS, strict=True):
            cv2.circle(picture, (int(x), int(y)), radius, colour, -1)
    return picture


def as_hint(picture: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in 0..1, what `core.identity_net` takes."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0).float().div_(255)


def _limb(cv2: Any, start: tuple[float, float], end: tuple[float, float], half_width: int) -> Any:
    """The outline of an ellipse between two points: its axes are half their distance, and the limb's half-width."""
    (x0, y0), (x1, y1) = start, end
    centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
    half_length = int(((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5 / 2)
    angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
    return cv2.ellipse2Poly(centre, (half_length, half_width), angle, 0, 360, 1)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(
            f"Keypoints are drawn with OpenCV, which cannot be imported ({error}): run `pip install opencv-python` in "
            "the WebUI's Python and restart it."
        ) from error
    return cv2
