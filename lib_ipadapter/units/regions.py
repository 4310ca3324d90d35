"""Where in the picture a unit acts: the text of the unit field `region`, read and written.

`field_spec` checks the field with it, `session.regions` draws what it says. Text and numbers only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle as fractions of the whole picture's width and height, from its top left corner."""

    x: float
    y: float
    width: float
    height: float


AUTO, FACE, EVERYWHERE = "auto", "face", "everywhere"
BY_FACE = {AUTO: "Auto", FACE: "Face"}
"""Name: label. Where these are follows from where the faces of a job stand (`session.people`)."""
WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_THIRD = 1 / 3
PRESETS: dict[str, tuple[str, Box]] = {
    EVERYWHERE: ("Everywhere", WHOLE),
    "left": ("Left half", Box(0.0, 0.0, 0.5, 1.0)),
    "right": ("Right half", Box(0.5, 0.0, 0.5, 1.0)),
    "top": ("Top half", Box(0.0, 0.0, 1.0, 0.5)),
    "bottom": ("Bottom half", Box(0.0, 0.5, 1.0, 0.5)),
    "centre": ("Centre", Box(0.25, 0.25, 0.5, 0.5)),
    "left third": ("Left third", Box(0.0, 0.0, _THIRD, 1.0)),
    "middle third": ("Middle third", Box(_THIRD, 0.0, _THIRD, 1.0)),
    "right third": ("Right third", Box(2 * _THIRD, 0.0, _THIRD, 1.0)),
}
"""Name: (label, box)."""
NAMES = (*BY_FACE, *PRESETS)

REGION_FORMS = (
    f"{', '.join(NAMES)}, a box x,y,width,height as fractions of the picture from its top left corner, or a picture "
    "whose white parts are the region (a data URI, base64 or a 'sha256:…' id)"
)
_FRACTION = r" *(0?\.[0-9]+|0\.?|1(\.0*)?) *"
BOX_PATTERN = f"^{_FRACTION}(,{_FRACTION}){{3}}$"
PICTURE_PATTERN = r"^\s*(data:|sha256:[0-9a-fA-F]{64}\s*$|[A-Za-z0-9+/_=\s-]{64,}$)"
"""The forms that are no preset as regular expressions for JSON Schema."""
_IS_PICTURE = re.compile(PICTURE_PATTERN, re.IGNORECASE)
_OVER = 1e-4
"""How far beyond the picture a box may reach: 0.333 + 0.667 and the like."""


@dataclass(frozen=True)
class Region:
    """`text` is the canonical form; `box` is None where it follows from faces or is the picture that `text` names."""

    text: str
    box: Box | None

    @property
    def is_everywhere(self) -> bool:
        """Whether it confines nothing."""
        return self.box == WHOLE

    @property
    def is_picture(self) -> bool:
        """Whether `text` refers to a picture."""
        return self.box is None and self.text not in BY_FACE


def parse_region(text: str) -> Region:
    """Read a preset's name or label, "x,y,width,height" or a picture's reference; an empty text means auto.

    Raises: ValueError saying what is wrong with a text that is none of the forms.
    """
    word = re.sub(r"[\s_-]+", " ", text.strip()[:40].lower()).replace("center", "centre")
    for name, label in BY_FACE.items():
        if word in (name, label.lower()):
            return Region(name, None)
    for name, (label, box) in PRESETS.items():
        if word in (name, label.lower()):
            return Region(name, box)
    if not word:
        return Region(AUTO, None)
    if _IS_PICTURE.match(text):
        picture = text.strip()
        return Region(picture.lower() if picture[:7].lower() == "sha256:" else picture, None)
    if "," in text:
        box = _parse_box(text)
        return Region(EVERYWHERE, WHOLE) if box == WHOLE else Region(",".join(f"{part:g}" for part in box), box)
    raise ValueError("It is none of these.")


def is_picture(text: str) -> bool:
    """Whether a region's text, as `parse_region` wrote it, refers to a picture."""
    return parse_region(text).is_picture


def _parse_box(text: str) -> Box:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError("A box is four numbers: x,y,width,height.")
    x, y, width, height = numbers
    if min(numbers) < 0.0 or x + width > 1.0 + _OVER or y + height > 1.0 + _OVER:
        raise ValueError("The box reaches beyond the picture, which is 1 wide and 1 high.")
    box = Box(round(x, 4), round(y, 4), round(min(width, 1.0 - x), 4), round(min(height, 1.0 - y), 4))
    if box.width <= 0.0 or box.height <= 0.0:
        raise ValueError("The box has no area.")
    return box
