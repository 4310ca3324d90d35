"""Where a face's five keypoints come from: the text of the unit field `keypoints`, read and written.

`field_spec` checks the field with it, `session.keypoints` finds the points. Text and numbers only; what a canvas makes
of the points is `encoders.keypoints`'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import cast

SOURCES = ("auto", "reference", "pose", "none")
"""A pose photo if there is one and else the reference; one of the two; nowhere."""
COUNT = 5
KEYPOINT_FORMS = (
    "auto, reference, pose, none, or five points [[x,y],…] (eye, eye, nose, mouth corner, mouth corner; left in the "
    "picture first) in pixels or as fractions of the picture"
)
MAX_COORDINATE = 100_000

Points = tuple[tuple[float, float], ...]


def parse_keypoints(value: object) -> str | Points:
    """Read a source's name, or five points as a list or its JSON.

    Raises: ValueError that says what is wrong.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            if text.lower() not in SOURCES:
                raise ValueError(f"There is no source of that name; the sources are {', '.join(SOURCES)}.")
            return text.lower()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The points are not JSON ({error}).") from error
    if not isinstance(value, (list, tuple)):
        raise ValueError("The points are no list.")  # noqa: TRY004 - a bad value, whatever its type
    points = cast("Sequence[object]", value)
    if len(points) != COUNT:
        raise ValueError(f"There are {len(points)} points and not {COUNT}.")
    return tuple(_pair(number, point) for number, point in enumerate(points, 1))


def write_keypoints(parsed: str | Points) -> str:
    """The text of what was parsed, points as compact JSON; `parse_keypoints` reads it back."""
    if isinstance(parsed, str):
        return parsed
    return json.dumps([[_short(x), _short(y)] for x, y in parsed], separators=(",", ":"))


def _pair(number: int, point: object) -> tuple[float, float]:
    numbers = list(cast("Sequence[object]", point)) if isinstance(point, (list, tuple)) else []
    if len(numbers) != 2 or not all(_is_coordinate(one) for one in numbers):
        raise ValueError(f"Point {number} is no pair of numbers from 0 to {MAX_COORDINATE}.")
    x, y = cast("list[float]", numbers)
    return float(x), float(y)


def _is_coordinate(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= MAX_COORDINATE and math.isfinite(value)


def _short(value: float) -> float | int:
    """To a ten-thousandth, and without a fraction where there is none."""
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded
