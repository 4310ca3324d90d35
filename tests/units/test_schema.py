"""The forms of the field list that others read agree with what a unit accepts."""

from __future__ import annotations

import json

import jsonschema
import pytest

from lib_ipadapter.library.errors import BadUnitError
from lib_ipadapter.units.fields import FIELDS, FIELDS_BY_NAME, INTENT
from lib_ipadapter.units.schema import axes, markdown_table, schema
from lib_ipadapter.units.unit import Unit

# What the schema allows and a unit reads, and what neither does.
GOOD = [
    {},
    {"images": ["a"], "weight": -1, "start": 0.5, "end": 0.5},
    {"enabled": False, "intent": "style", "combine": "average", "adapter": "x.bin", "uncond": "noise", "crop": "pad"},
    {"intent": "face", "face": "largest; 2;; @0.31, 1", "lora": 0, "s_scale": 2.5, "score": True},
    {"face": "1000"},
]
BAD = [
    {"weight": 4},
    {"weight": [1]},
    {"intent": "faces"},
    {"face": "smallest"},
    {"face": "0"},
    {"face": "@0.5"},
    {"face": "@1.5,0"},
    {"face": "largest 2"},
    {"images": [""]},
    {"images": ["a"] * 65},
    {"enabled": 7},
    {"adapter": "x" * 513},
    {"unknown": 1},
]


def test_the_schema_is_json_and_states_each_default() -> None:
    form = json.loads(json.dumps(schema(), allow_nan=False))
    assert form["additionalProperties"] is False
    assert {name: entry["default"] for name, entry in form["properties"].items()} == Unit().to_dict()
    assert form["properties"]["weight"]["minimum"] == -1
    assert form["properties"]["intent"]["enum"] == [value for value, _ in INTENT.choices]
    assert form["properties"]["intent"]["enum"][-1] == "instantid"


@pytest.mark.parametrize("unit", GOOD + BAD, ids=str)
def test_the_schema_and_the_unit_accept_the_same(unit: dict[str, object]) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid(unit) == (unit in GOOD)
    if unit in GOOD:
        Unit.from_dict(unit)
    else:
        with pytest.raises(BadUnitError):
            Unit.from_dict(unit)


def test_axes_read_a_cell_and_the_field_accepts_it() -> None:
    assert [axis.field for axis in axes()] == [spec.name for spec in FIELDS if spec.name not in ("enabled", "score")]
    for axis in axes():
        spec = FIELDS_BY_NAME[axis.field]
        assert axis.label == spec.label
        for cell in axis.choices or ("best" if axis.field == "face" else "0.5",):
            assert spec.parse(axis.type(cell)) is not None
    assert {axis.field for axis in axes() if axis.type is float} == {"weight", "start", "end", "lora", "s_scale"}


def test_the_table_is_well_formed_markdown() -> None:
    lines = markdown_table().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert "| `weight` | Weight | a number from -1 to 3 | `0.8` |" in markdown_table()
