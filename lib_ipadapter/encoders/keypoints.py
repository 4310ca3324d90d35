"""Where a face's five keypoints lie: read from a request, and carried from their picture to the canvas.

`session` calls this with a detected face's points or with a user's; `keypoint_map` draws what comes out. No pixel is
touched here, so the page can use it for its editor too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

from ..library.errors import KeypointsError

Point = tuple[float, float]
Keypoints = tuple[Point, Point, Point, Point, Point]
"""Eye, eye, nose, mouth corner, mouth corner, in pixels; of each pair the one that is left in the picture first."""

Size = tuple[int, int]
"""Width, height."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

Fit = Literal["crop", "pad", "stretch"]
Units = Literal["auto", "pixels", "relative"]

NAMES = ("first eye", "second eye", "nose", "first mouth corner", "second mouth corner")


def read_keypoints(points: object, size: Size, units: Units = "auto") -> Keypoints:
    """Check five given points and return them in pixels of a picture of `size`.

    `points` is a sequence of five pairs of numbers. "relative" ones are fractions of the width and the height; "auto"
    takes them for relative when none is above 1, since five points within one pixel are no face.

    Raises: KeypointsError when they are not five pairs of finite numbers, or one is outside the picture.
    """
    pairs = _pairs(points)
    relative = units == "relative" or (units == "auto" and all(abs(value) <= 1 for pair in pairs for value in pair))
    width, height = size if relative else (1, 1)
    found = cast(Keypoints, tuple((x * width, y * height) for x, y in pairs))
    check_inside(found, size, "picture")
    return found


def relative_keypoints(keypoints: Keypoints, size: Size) -> Keypoints:
    """The points as fractions of a picture's width and height, as requests and infotext carry them."""
    width, height = size
    return cast(Keypoints, tuple((x / width, y / height) for x, y in keypoints))


def fit_keypoints(keypoints: Keypoints, source: Size, canvas: Size, fit: Fit = "crop") -> Keypoints:
    """Carry points from a picture of size `source` to the canvas.

    - `crop`: the picture covers the canvas, its middle in the canvas's middle; what sticks out is lost
    - `pad`: the whole picture fits into the canvas, its middle in the canvas's middle
    - `stretch`: the picture takes the canvas's ratio, and the face with it

    Raises: KeypointsError when a point falls outside the canvas.
    """
    found = cast(Keypoints, _moved(keypoints, *_fitting(source, canvas, fit)))
    advice = 'choose the fit "pad", or a picture in which the face is nearer to the middle' if fit == "crop" else ""
    check_inside(found, canvas, "canvas", advice)
    return found


def crop_keypoints(keypoints: Keypoints, box: Box, canvas: Size) -> Keypoints:
    """Carry points into a crop of their picture that fills the canvas (img2img "only masked").

    `box` is the crop in pixels of the picture that the points are in. A face may be cut, or lie beyond the crop.

    Raises: KeypointsError when the crop is empty.
    """
    return cast(Keypoints, _moved(keypoints, *_cropping(box, canvas)))


def is_in_sight(keypoints: Keypoints, size: Size) -> bool:
    """Whether any of the points is inside a picture of `size`."""
    return any(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in keypoints)


def fit_box(face: Box, source: Size, canvas: Size, fit: Fit = "crop") -> Box:
    """Carry a face's box as `fit_keypoints` carries its points; it may reach beyond the canvas."""
    return _moved_box(face, _fitting(source, canvas, fit))


def crop_box(face: Box, box: Box, canvas: Size) -> Box:
    """Carry a face's box as `crop_keypoints` carries its points; it may reach beyond the canvas."""
    return _moved_box(face, _cropping(box, canvas))


def check_inside(keypoints: Keypoints, size: Size, what: str, advice: str = "") -> None:
    """Raises KeypointsError naming the first point outside `size`; points on the far edges are inside."""
    width, height = size
    for name, (x, y) in zip(NAMES, keypoints, strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise KeypointsError(
                f"A keypoint (the {name}) lies at {x:.0f}, {y:.0f}, outside the {what} of {width}x{height}: "
                f"{advice or 'move it inside'}."
            )


def _fitting(source: Size, canvas: Size, fit: Fit) -> tuple[float, float, float, float]:
    """Canvas's pixels per the picture's, across and down, and where the picture's corner comes to lie."""
    across, down = canvas[0] / source[0], canvas[1] / source[1]
    if fit != "stretch":
        across = down = max(across, down) if fit == "crop" else min(across, down)
    return across, down, (canvas[0] - source[0] * across) / 2, (canvas[1] - source[1] * down) / 2


def _cropping(box: Box, canvas: Size) -> tuple[float, float, float, float]:
    """As `_fitting`. Raises: KeypointsError when the crop is empty."""
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        raise KeypointsError(f"The crop {_shown(box)} for the keypoints is empty.")
    across, down = canvas[0] / (right - left), canvas[1] / (bottom - top)
    return across, down, -left * across, -top * down


def _moved(points: Sequence[Point], across: float, down: float, left: float, top: float) -> tuple[Point, ...]:
    return tuple((x * across + left, y * down + top) for x, y in points)


def _moved_box(face: Box, placing: tuple[float, float, float, float]) -> Box:
    corner, opposite = _moved((face[:2], face[2:]), *placing)
    return (*corner, *opposite)


def _pairs(points: object) -> list[Point]:
    """Five pairs of floats out of whatever a request holds."""
    if not _is_list(points) or len(cast("Sequence[object]", points)) != 5:
        raise KeypointsError(f"Keypoints are five pairs of numbers ({', '.join(NAMES)}); got {_shown(points)}.")
    found: list[Point] = []
    for name, pair in zip(NAMES, cast("Sequence[object]", points), strict=True):
        numbers = list(cast("Sequence[object]", pair)) if _is_list(pair) else []
        if len(numbers) != 2 or not all(map(_is_number, numbers)):
            raise KeypointsError(f"The keypoint for the {name} is no pair of numbers: {_shown(pair)}.")
        x, y = (float(cast(float, number)) for number in numbers)
        found.append((x, y))
    return found


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, dict))


def _is_number(value: object) -> bool:
    """Plain and numpy numbers; a flag is none."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        return False
    try:
        return math.isfinite(float(cast(float, value)))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: object) -> str:
    return repr(value)[:120]
