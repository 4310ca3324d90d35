"""What one field of a unit is, and how a value from a page, a program or an old picture is read into it.

`fields` lists the fields; `unit` reads values through `FieldSpec.parse`. Nothing else knows a range.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from ..library.errors import BadUnitError
from .face_choice import (
    FACE_FORMS,
    MAX_FACE_TEXT,
    ONE_FACE_FORMS,
    parse_face_choices,
    parse_one_face,
    write_face_choices,
    write_one_face,
)
from .keypoint_text import KEYPOINT_FORMS, parse_keypoints, write_keypoints
from .regions import NAMES, REGION_FORMS, parse_region

Kind = Literal["bool", "number", "choice", "text", "images", "adapter", "face", "one_face", "region", "keypoints"]
Value = bool | float | str | tuple[str, ...]
T_co = TypeVar("T_co", bound=Value, covariant=True)

MAX_TEXT = 512
# Lines of wrapped base64 are 64 or 76 characters wide; anything wider is a reference of its own.
WRAPPED_LINE = 76
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class FieldSpec(Generic[T_co]):
    """One field: what the page shows, what a program may send, what the infotext and the XYZ plot call it.

    `choices` are pairs (value, label). For kind "images", `maximum` is the largest number of references.
    """

    name: str
    label: str
    kind: Kind
    default: T_co
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[tuple[str, str], ...] = ()
    axis: bool = True

    def parse(self, value: object) -> T_co:
        """Read a value in any form in which the hosts deliver it: typed, as a string, as a choice's label.

        Raises: BadUnitError naming the field, the value and what is accepted.
        """
        return cast(T_co, _READERS[self.kind](self, value))

    def accepts(self) -> str:
        """What the field accepts, in words that follow "it must be"."""
        if self.kind == "number":
            return f"a number from {self.minimum:g} to {self.maximum:g}"
        if self.kind == "choice":
            return "one of " + ", ".join(value for value, _ in self.choices)
        return {
            "bool": "true or false",
            "text": f"a line of text of at most {MAX_TEXT} characters",
            "face": f"{FACE_FORMS}, one for all pictures or one for each, separated by semicolons",
            "one_face": ONE_FACE_FORMS,
            "region": REGION_FORMS,
            "keypoints": KEYPOINT_FORMS,
            "adapter": f"'auto' or a file name of at most {MAX_TEXT} characters",
            "images": f"a list of at most {self.maximum or 0:g} pictures, each a string",
        }[self.kind]

    def refuse(self, value: object, hint: str = "") -> BadUnitError:
        """The error that says what was sent and what is accepted."""
        return BadUnitError(f"{self.name} is {shown(value)}; it must be {self.accepts()}.{hint}")


def shown(value: object) -> str:
    """A value as an error message quotes it: its JSON-like form, cut so that a picture does not fill the log."""
    if isinstance(value, str):
        text = repr(value[:SHOWN_CHARACTERS])
        return text if len(value) <= SHOWN_CHARACTERS else f"{text}… ({len(value)} characters)"
    if value is not None and not isinstance(value, (int, float)):
        return f"a value of type {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 38 digits"
    return repr(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence " Did you mean …?" with the nearest known word, or nothing."""
    near = difflib.get_close_matches(word[:SHOWN_CHARACTERS].lower(), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def read_json(text: str) -> object:
    """Parse a JSON text from outside.

    Raises: ValueError for anything that is not JSON, also for nesting or numbers beyond Python's limits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _read_bool(spec: FieldSpec[Value], value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if isinstance(value, (int, float)) and value in (0, 1):
        return value == 1
    raise spec.refuse(value)


def _read_number(spec: FieldSpec[Value], value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise spec.refuse(value)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise spec.refuse(value) from error
    low, high = spec.minimum, spec.maximum
    if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
        raise spec.refuse(value)
    return number


def _read_choice(spec: FieldSpec[Value], value: object) -> str:
    if not isinstance(value, str):
        raise spec.refuse(value)
    wanted = value.strip().lower()
    for choice, label in spec.choices:
        if wanted in (choice.lower(), label.lower()):
            return choice
    raise spec.refuse(value, did_you_mean(wanted, [choice for choice, _ in spec.choices]))


def _read_text(spec: FieldSpec[Value], value: object, longest: int = MAX_TEXT) -> str:
    # A cleared drop-down or text box arrives as null, "" or, from gradio 3, [].
    if value is None or value in ("", []):
        return cast(str, spec.default)
    if not isinstance(value, str):
        raise spec.refuse(value)
    text = value.strip()
    # What is not printable (line breaks, NUL, lone surrogates) is no file name and could not be written to a PNG.
    if len(text) > longest or not text.isprintable():
        raise spec.refuse(value)
    return text or cast(str, spec.default)


def _read_face(spec: FieldSpec[Value], value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _read_text(spec, value, MAX_FACE_TEXT)
    try:
        if spec.kind == "one_face":
            return write_one_face(parse_one_face(text))
        return write_face_choices(parse_face_choices(text))
    except ValueError as error:
        raise spec.refuse(value, f" {error}") from error


def _read_region(spec: FieldSpec[Value], value: object) -> str:
    if value is None or value == []:
        return cast(str, spec.default)
    if not isinstance(value, str):
        raise spec.refuse(value)
    try:
        return parse_region(value).text
    except ValueError as error:
        raise spec.refuse(value, f" {error}{did_you_mean(value, NAMES)}") from error


def _read_keypoints(spec: FieldSpec[Value], value: object) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return cast(str, spec.default)
    try:
        return write_keypoints(parse_keypoints(value))
    except ValueError as error:
        raise spec.refuse(value, f" {error}") from error


def _read_images(spec: FieldSpec[Value], value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        items = _references_in(spec, value)
    elif isinstance(value, (list, tuple)):
        items = list(cast("Iterable[object]", value))
    else:
        raise spec.refuse(value)
    references: list[str] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, str) or not item.strip():
            raise BadUnitError(f"{spec.name}: picture {number} is {shown(item)}; it must be {_PICTURE_FORMS}.")
        references.append(item.strip())
    if spec.maximum is not None and len(references) > spec.maximum:
        raise BadUnitError(
            f"{spec.name} holds {len(references)} pictures; a unit takes at most {spec.maximum:g}. Use several units."
        )
    return tuple(references)


def _references_in(spec: FieldSpec[Value], text: str) -> list[object]:
    """Several references in one string: a JSON array, or lines, where short lines without ':' are wrapped base64."""
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            return cast("list[object]", read_json(stripped))
        except ValueError as error:
            raise BadUnitError(f"{spec.name} begins like a JSON array but cannot be read: {error}.") from error
    references: list[str] = []
    for line in stripped.splitlines():
        part = line.strip()
        if references and len(part) <= WRAPPED_LINE and ":" not in part:
            references[-1] += part
        elif part:
            references.append(part)
    return list(references)


_PICTURE_FORMS = "a string: a data URI, base64, or the 'sha256:…' id of a stored picture"
_READERS = {
    "bool": _read_bool,
    "number": _read_number,
    "choice": _read_choice,
    "text": _read_text,
    "adapter": _read_text,
    "face": _read_face,
    "one_face": _read_face,
    "region": _read_region,
    "keypoints": _read_keypoints,
    "images": _read_images,
}
