"""Each field has one home, and reads values in every form in which hosts deliver them."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from lib_ipadapter.library.errors import BadUnitError
from lib_ipadapter.units.fields import FIELDS, FIELDS_BY_NAME
from lib_ipadapter.units.other_names import OTHER_NAMES
from lib_ipadapter.units.schema import axes, markdown_table, schema
from lib_ipadapter.units.unit import Unit

NAMES = [spec.name for spec in FIELDS]


def test_one_home_for_each_field() -> None:
    assert [field.name for field in dataclasses.fields(Unit)] == NAMES
    assert list(schema()["properties"]) == NAMES  # type: ignore[call-overload]
    assert list(Unit().to_dict()) == NAMES
    for spec, field in zip(FIELDS, dataclasses.fields(Unit), strict=True):
        assert field.default is spec.default, f"{spec.name} has a second default"
    axis_names = [axis.field for axis in axes()]
    assert axis_names == [name for name in NAMES if name in axis_names], "axes follow the field order"
    assert [line.split("|")[1].strip(" `") for line in markdown_table().splitlines()[2:]] == NAMES
    assert set(OTHER_NAMES.values()) <= set(NAMES)
    assert not set(OTHER_NAMES) & set(NAMES)


def test_names_and_labels_are_fit_for_the_hosts() -> None:
    assert NAMES[:2] == ["enabled", "intent"]
    assert "module" not in NAMES, "ADetailer switches off dict arguments with that key"
    labels = [spec.label for spec in FIELDS]
    assert len(set(labels)) == len(labels), "ui-config.json keeps defaults by label"
    for spec in FIELDS:
        assert len(spec.label) <= 20
        assert spec.help.endswith(".")
        assert spec.help.count(". ") == 0, "one sentence"
        assert len({choice for choice, _ in spec.choices}) == len({label for _, label in spec.choices})


@pytest.mark.parametrize("spec", FIELDS, ids=NAMES)
def test_a_default_reads_as_itself(spec) -> None:
    assert spec.parse(spec.default) == spec.default
    assert type(spec.parse(spec.default)) is type(spec.default)
    if spec.kind == "number":
        assert spec.minimum <= spec.default <= spec.maximum


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("enabled", "False", False),
        ("enabled", 1, True),
        ("weight", 2, 2.0),
        ("weight", "-1", -1.0),
        ("weight", " 0.35 ", 0.35),
        ("intent", "Style + composition", "style_composition"),
        ("intent", " STYLE ", "style"),
        ("crop", "Tiles", "tiles"),
        ("adapter", None, "auto"),
        ("adapter", "", "auto"),
        ("adapter", "  ", "auto"),
        ("adapter", [], "auto"),
        ("adapter", " sub/ip-adapter_sd15.safetensors ", "sub/ip-adapter_sd15.safetensors"),
        ("adapter", "Ж 画 é.bin", "Ж 画 é.bin"),
        ("images", None, ()),
        ("images", "", ()),
        ("images", [" a ", "b"], ("a", "b")),
        ("images", '["a", "b"]', ("a", "b")),
        ("images", "sha256:a\nsha256:b\r\n\n", ("sha256:a", "sha256:b")),
        ("images", "data:image/png;base64,AAAA\nBBBB\nsha256:c", ("data:image/png;base64,AAAABBBB", "sha256:c")),
        ("images", f"{'A' * 76}\n{'B' * 10}", ("A" * 76 + "B" * 10,)),
        ("images", f"{'A' * 100}\n{'B' * 100}", ("A" * 100, "B" * 100)),
        ("face", "", "largest"),
        ("face", 2, "2"),
        ("face", " Best ", "best"),
        ("face", "@.5, 0.25", "@0.5,0.25"),
        ("face", "largest;;3 ; @0,1", ";;3;@0,1"),
        ("pose_face", "", "auto"),
        ("pose_face", " Auto", "auto"),
        ("pose_face", 2, "2"),
        ("pose_face", "Largest", "largest"),
        ("pose_face", "@.5, 0.25", "@0.5,0.25"),
        ("face", ";".join(["@0.1234,0.5678"] * 64), ";".join(["@0.1234,0.5678"] * 64)),
        ("keypoints", "", "auto"),
        ("keypoints", None, "auto"),
        ("keypoints", " Pose ", "pose"),
        ("keypoints", "[[1, 2], [3.25, 2], [2,3], [1,4], [3,4]]", "[[1,2],[3.25,2],[2,3],[1,4],[3,4]]"),
        ("keypoints", [(0.1, 0.123456), (1, 0), (0, 1), (0, 0), (1, 1)], "[[0.1,0.1235],[1,0],[0,1],[0,0],[1,1]]"),
        ("pose", "sha256:a", ("sha256:a",)),
        ("net_rows", "Prompt only (faster)", "cond"),
        ("net_engine", "ControlNet extension", "controlnet"),
    ],
)
def test_values_arrive_in_many_forms(name: str, given: object, expected: object) -> None:
    assert FIELDS_BY_NAME[name].parse(given) == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("enabled", 2),
        ("enabled", "yes"),
        ("enabled", None),
        ("weight", True),
        ("weight", None),
        ("weight", "9"),
        ("weight", 3.0001),
        ("weight", float("nan")),
        ("weight", "nan"),
        ("weight", "inf"),
        ("weight", 10**400),
        ("weight", "1,5"),
        ("weight", [1]),
        ("start", -0.01),
        ("end", 1.01),
        ("intent", "faces"),
        ("intent", 0),
        ("intent", None),
        ("adapter", 3),
        ("adapter", "a\nb"),
        ("adapter", "a\0b"),
        ("adapter", "\ud800"),
        ("adapter", "x" * 513),
        ("images", 5),
        ("images", {"a": 1}),
        ("images", ["a", 5]),
        ("images", ["a", ""]),
        ("images", ["a", ["b"]]),
        ("images", "[1, 2"),
        ("images", "[" * 100_000),
        ("images", ["a"] * 65),
        ("face", "smallest"),
        ("face", "auto"),
        ("pose_face", "1;2"),
        ("pose_face", "first"),
        ("pose_face", 0),
        ("face", 0),
        ("face", True),
        ("face", "1001"),
        ("face", "@0.5"),
        ("face", "@1.5,0"),
        ("face", "@nan,0"),
        ("face", "1,2"),
        ("face", "²"),
        ("keypoints", "left"),
        ("keypoints", "[[1,2]]"),
        ("keypoints", "[[1,2],[1,2],[1,2],[1,2],[1,NaN]]"),
        ("keypoints", "[[1,2],[1,2],[1,2],[1,2],[1,true]]"),
        ("keypoints", "[" * 100_000),
        ("keypoints", [[1, 2]] * 6),
        ("keypoints", {"a": 1}),
        ("keypoints", 7),
        ("pose", ["a", "b"]),
        ("net_weight", -0.1),
    ],
)
def test_what_is_not_accepted_is_named(name: str, given: object) -> None:
    with pytest.raises(BadUnitError, match=name) as caught:
        FIELDS_BY_NAME[name].parse(given)
    assert len(str(caught.value)) < 400, "a picture or a page of digits must not fill the log"


def test_numbers_out_of_range_are_told_value_and_range() -> None:
    with pytest.raises(BadUnitError, match=r"^weight is 9; it must be a number from -1 to 3\.$"):
        FIELDS_BY_NAME["weight"].parse(9)


def test_near_misses_are_suggested() -> None:
    with pytest.raises(BadUnitError, match=r"Did you mean centre\?"):
        FIELDS_BY_NAME["crop"].parse("center")


@pytest.mark.parametrize("seed", range(200))
def test_any_json_value_is_read_or_refused_by_name(seed: int) -> None:
    rng = random.Random(seed)
    for spec in FIELDS:
        value = random_json(rng)
        try:
            read = spec.parse(value)
        except BadUnitError as error:
            assert spec.name in str(error)
        else:
            assert spec.parse(read) == read
            json.dumps(read, allow_nan=False)


def random_json(rng: random.Random, depth: int = 0) -> object:
    """Some JSON value, of the kinds that programs send by mistake."""
    makers = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, 1, -1, 2**70, 10**350, rng.randint(-9, 9)]),
        lambda: rng.choice([float("nan"), float("inf"), -0.0, rng.uniform(-2, 4)]),
        lambda: "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)])) for _ in range(rng.randrange(12))),
        lambda: rng.choice(["true", "auto", "style", "1", "[", "{}", "[]", '["a"]', "sha256:", "\ud800", ":\n:"]),
    ]
    if depth < 3:
        makers.append(lambda: [random_json(rng, depth + 1) for _ in range(rng.randrange(4))])
        makers.append(lambda: {str(key): random_json(rng, depth + 1) for key in range(rng.randrange(3))})
    return rng.choice(makers)()
