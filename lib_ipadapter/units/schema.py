"""The field list in the forms that others read: JSON Schema (the API), XYZ axes (webui) and README's table."""

from __future__ import annotations

from typing import NamedTuple

from .face_choice import FACE_PATTERN, MAX_FACE_TEXT, ONE_FACE_PATTERN
from .field_spec import MAX_TEXT, FieldSpec, Value
from .fields import FIELDS
from .keypoint_text import COUNT, MAX_COORDINATE, SOURCES
from .regions import BOX_PATTERN, PICTURE_PATTERN

_COORDINATE = {"type": "number", "minimum": 0, "maximum": MAX_COORDINATE}


class Axis(NamedTuple):
    """One axis of the XYZ plot, for any unit.

    `type` reads a cell's text as the host does (float cells may be ranges); `FieldSpec.parse` then checks the value.
    `choices` are the values that the plot may offer; empty where anything in range goes.
    """

    label: str
    field: str
    type: type[float] | type[str]
    choices: tuple[str, ...]


def schema() -> dict[str, object]:
    """JSON Schema (2020-12) of one unit as a program sends it; JSON scalars, lists and dicts only."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "IP-Adapter unit",
        "description": "One element of alwayson_scripts['IP-Adapter'].args; what is left out has its default. "
        "start must not be greater than end, and an enabled unit needs at least one picture.",
        "type": "object",
        "properties": {spec.name: _property(spec) for spec in FIELDS},
        "additionalProperties": False,
    }


def axes() -> tuple[Axis, ...]:
    """The fields that an XYZ plot can vary, in field order."""
    return tuple(
        Axis(
            label=spec.label,
            field=spec.name,
            type=float if spec.kind == "number" else str,
            choices=tuple(value for value, _ in spec.choices),
        )
        for spec in FIELDS
        if spec.axis
    )


def markdown_table() -> str:
    """README's table of fields; a test compares README with it."""
    rows = ["| Field | Page | Values | Default | What it does |", "|---|---|---|---|---|"]
    for spec in FIELDS:
        default = _json_default(spec)
        shown = f"`{default}`" if isinstance(default, str) else f"`{str(default).lower()}`"
        cells = (f"`{spec.name}`", spec.label, spec.accepts(), shown, spec.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _json_default(spec: FieldSpec[Value]) -> bool | float | str | list[str]:
    return list(spec.default) if isinstance(spec.default, tuple) else spec.default


def _property(spec: FieldSpec[Value]) -> dict[str, object]:
    """The JSON Schema of one field."""
    form: dict[str, object] = {"title": spec.label, "description": spec.help, "default": _json_default(spec)}
    if spec.kind == "bool":
        form["type"] = "boolean"
    elif spec.kind == "number":
        form.update(type="number", minimum=spec.minimum, maximum=spec.maximum)
    elif spec.kind == "choice":
        form.update(type="string", enum=[value for value, _ in spec.choices])
    elif spec.kind == "images":
        form.update(type="array", items={"type": "string", "minLength": 1}, maxItems=int(spec.maximum or 0))
    elif spec.kind == "region":
        names = [value for value, _ in spec.choices]
        form.update(type="string", anyOf=[{"enum": names}, {"pattern": BOX_PATTERN}, {"pattern": PICTURE_PATTERN}])
    elif spec.kind == "keypoints":
        pair = {"type": "array", "minItems": 2, "maxItems": 2, "items": _COORDINATE}
        points = {"type": "array", "minItems": COUNT, "maxItems": COUNT, "items": pair}
        form["anyOf"] = [{"type": "string", "pattern": rf"^({'|'.join(SOURCES)}|\[.*\]|)$"}, points]
    else:
        form.update(type="string", maxLength=MAX_TEXT)
        if spec.kind == "face":
            form.update(pattern=FACE_PATTERN, maxLength=MAX_FACE_TEXT)
        elif spec.kind == "one_face":
            form.update(pattern=ONE_FACE_PATTERN)
    return form
