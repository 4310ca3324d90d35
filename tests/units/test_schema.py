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
    {"intent": "face", "images": list("abcd"), "face": "largest; 2;; @0.31, 1", "lora": 0, "score": True},
    {"s_scale": 2.5},
    {"face": "1000"},
    {"region": "left third", "feather": 0.2},
    {"region": "face", "pose_face": "auto"},
    {"region": "auto", "pose_face": "@0.5,0.25"},
    {"region": "0.1, .2,0.5,0.8"},
    {"region": "sha256:" + "a" * 64, "feather": 0},
    {"region": "data:image/png;base64,AAAA"},
    {"region": "iVBORw0KGgo" * 9},
    {"identity_net": "none", "net_weight": 2, "net_start": 0.5, "net_end": 0.5, "net_rows": "cond", "show_map": True},
    {"intent": "instantid", "net_engine": "controlnet"},
    {"keypoints": "pose", "pose": ["a"], "pose_face": "2", "fit": "stretch"},
    {"keypoints": [[0.1, 0.2], [0.3, 0.2], [0.2, 0.3], [0.1, 0.4], [0.3, 0.4]]},
    {"keypoints": "[[10,20],[30,20],[20,30],[10,40],[30,40]]"},
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
    {"region": "leftish"},
    {"pose_face": "1;2"},
    {"pose_face": "first"},
    {"region": "0.1,0.2,0.5"},
    {"region": "0.1,0.2,0.5,1.5"},
    {"region": "sha256:12"},
    {"region": 3},
    {"feather": 0.6},
    {"images": [""]},
    {"images": ["a"] * 65},
    {"enabled": 7},
    {"adapter": "x" * 513},
    {"unknown": 1},
    {"net_weight": 2.5},
    {"keypoints": "left"},
    {"keypoints": [[1, 2]] * 4},
    {"keypoints": [[1, 2]] * 4 + [[1]]},
    {"keypoints": [[1, 2]] * 4 + [[1, -2]]},
    {"keypoints": 5},
    {"pose": ["a", "b"]},
    {"fit": "cut"},
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
    switches = ("enabled", "score", "show_map")
    assert [axis.field for axis in axes()] == [spec.name for spec in FIELDS if spec.name not in switches]
    for axis in axes():
        spec = FIELDS_BY_NAME[axis.field]
        assert axis.label == spec.label
        for cell in axis.choices or ({"face": "best", "pose_face": "2", "keypoints": "none"}.get(axis.field, "0.5"),):
            assert spec.parse(axis.type(cell)) is not None
    numbers = {"weight", "start", "end", "lora", "s_scale", "feather", "net_weight", "net_start", "net_end"}
    numbers |= {"uncond_noise", "cfg_rescale"}
    assert {axis.field for axis in axes() if axis.type is float} == numbers


def test_the_table_is_well_formed_markdown() -> None:
    lines = markdown_table().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert "| `region` | Region | auto, face, everywhere, left, right," in markdown_table()
    assert "| `weight` | Weight | a number from -1 to 3 | `0.8` |" in markdown_table()
