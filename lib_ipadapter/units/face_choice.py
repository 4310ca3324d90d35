"""Which face of a picture counts: the text of the unit fields `face` and `pose_face`, read and written.

`field_spec` checks the fields with it, `session.faces` asks it per picture, `session.seats` for a pose photo. Text and
numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

How = Literal["largest", "best", "index", "point"]

AUTO = "auto"
FACE_FORMS = "largest, best, a number from 1 (left to right), or @x,y with x and y from 0 to 1"
SEPARATOR = ";"
ONE_FACE_FORMS = f"{AUTO}, {FACE_FORMS}"
_FORM = r"largest|best|[1-9][0-9]{0,2}|1000|@(0?\.[0-9]+|0|1|1\.0*|0\.) *, *(0?\.[0-9]+|0|1|1\.0*|0\.)"
_ONE = f" *({_FORM})? *"
FACE_PATTERN = f"^{_ONE}({SEPARATOR}{_ONE})*$"
ONE_FACE_PATTERN = f"^ *({AUTO}|{_FORM})? *$"
"""The forms as regular expressions for JSON Schema, which say the same as the readers of plain numbers."""
MAX_INDEX = 1000
MAX_FACE_TEXT = 2048
"""Characters; a point for each of as many pictures as a unit takes fits in."""


@dataclass(frozen=True)
class FaceChoice:
    """One picture's choice: `index` counts from 1, left to right; `point` is (x, y) as fractions of the picture."""

    how: How = "largest"
    index: int = 0
    point: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        if self.how == "index":
            return str(self.index)
        if self.how == "point":
            return "@" + ",".join(f"{round(part, 4):g}" for part in self.point)
        return self.how


def parse_face_choices(text: str) -> tuple[FaceChoice, ...]:
    """Read "largest", "2", "@0.3,0.4" or several of these separated by semicolons; an empty part means largest.

    Raises: ValueError naming the part that is none of the forms.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(SEPARATOR))


def parse_one_face(text: str) -> FaceChoice | None:
    """Read one choice; None for "auto", which an empty text means, too. Raises: ValueError."""
    part = text.strip()
    return None if part.lower() in ("", AUTO) else _parse_one(part)


def write_one_face(choice: FaceChoice | None) -> str:
    """The canonical text of such a choice."""
    return AUTO if choice is None else str(choice)


def write_face_choices(choices: Sequence[FaceChoice]) -> str:
    """The canonical text of these choices; `parse_face_choices` gives them back. In a list the default is empty."""
    if len(choices) == 1:
        return str(choices[0])
    return SEPARATOR.join("" if choice == FaceChoice() else str(choice) for choice in choices)


def choice_for(choices: Sequence[FaceChoice], picture: int) -> FaceChoice:
    """The choice for the picture at this place, from 0: a single choice is for all, a list that is too short ends in
    the default.
    """
    if len(choices) == 1:
        return choices[0]
    return choices[picture] if picture < len(choices) else FaceChoice()


def _parse_one(part: str) -> FaceChoice:
    word = part.lower()
    if word in ("", "largest"):
        return FaceChoice()
    if word == "best":
        return FaceChoice("best")
    if word.isascii() and word.isdecimal() and len(word) <= len(str(MAX_INDEX)) and 1 <= int(word) <= MAX_INDEX:
        return FaceChoice("index", index=int(word))
    if word.startswith("@"):
        return FaceChoice("point", point=_parse_point(part))
    raise ValueError(f"{part[:40]!r} is none of these.")


def _parse_point(part: str) -> tuple[float, float]:
    numbers = part[1:].split(",")
    try:
        x, y = (float(number) for number in numbers)
    except ValueError as error:
        raise ValueError(f"{part[:40]!r} is not a point such as @0.31,0.42.") from error
    if not (math.isfinite(x) and math.isfinite(y) and 0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
        raise ValueError(f"{part[:40]!r} lies outside the picture.")
    return x, y
