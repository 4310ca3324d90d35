"""Units survive the infotext, and nothing in an infotext can break a paste."""

from __future__ import annotations

import json
import random
import re

import pytest

from lib_ipadapter.library.errors import BadImageError
from lib_ipadapter.units.fields import FIELDS
from lib_ipadapter.units.images import digest
from lib_ipadapter.units.infotext import PastedUnit, infotext_key, unit_to_infotext, units_from_infotext
from lib_ipadapter.units.unit import Unit

from .test_fields import random_json

REFS = (digest(b"one"), digest(b"two"))
RAN = {"adapter": 'ip-adapter, plus: "x" ]\\.bin', "fingerprint": "0123abcd", "encoder": "clip_h"}
HOSTILE = ['",:\n', "\\", "\\n", "]}", "Ж画é", "\u2028\u2029", "a: b, c: d", '"quoted"', "{}", "640x640", "<b>"]


def host_writes(params: dict[str, str]) -> str:
    """The last line of an infotext, by the rule that the hosts document: what holds `, : \\n` is JSON-quoted."""
    written: list[str] = []
    for key, value in params.items():
        quoted = json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
        written.append(f"{key}: {quoted}")
    return ", ".join(written)


def host_reads(line: str) -> dict[str, str]:
    """The reverse, as a scanner: `key: value` pairs apart by commas, a value that begins with `"` ends at its mate.

    `640x640` becomes two keys and an empty value is lost, as in the hosts.
    """
    params: dict[str, str] = {}
    position = 0
    while position < len(line):
        key, _, _ = line[position:].partition(":")
        position += len(key) + 1
        while line[position : position + 1] == " ":
            position += 1
        if line[position : position + 1] == '"':
            value, length = json.JSONDecoder().raw_decode(line[position:])
            position += length
        else:
            value = line[position:].split(",", 1)[0]
            position += len(value)
        if re.fullmatch(r"\d+x\d+", value):
            params[f"{key.strip()}-1"], params[f"{key.strip()}-2"] = value.split("x")
        elif value:
            params[key.strip()] = value
        position += 1
    return params


def through_the_host(params: dict[str, str]) -> dict[str, str]:
    line = host_writes({"Steps": "20", "Size": "512x512", **params, "Version": "v1.10.1"})
    assert "\n" not in line
    read = host_reads(line)
    assert read["Size-1"] == "512"
    assert read["Version"] == "v1.10.1"
    return read


def random_unit(rng: random.Random) -> Unit:
    values: dict[str, object] = {"images": list(rng.sample(REFS, rng.randrange(1, 3)))}
    for spec in FIELDS:
        if spec.choices:
            values[spec.name] = rng.choice(spec.choices)[0]
    values["adapter"] = rng.choice(["auto", "x.bin", *[f"a{text}b" for text in HOSTILE if text.isprintable()]])
    values["weight"] = rng.choice([0.8, 0, -0.35, 0.1 + 0.2, rng.uniform(-1, 3)])
    values["start"], values["end"] = sorted([rng.random(), rng.choice([1.0, rng.random()])])
    return Unit.from_dict(values)


def test_keys_suit_the_hosts_and_the_controlnet_extension() -> None:
    for number in (1, 4, 10):
        assert re.fullmatch(r"\w[\w \-/]+", infotext_key(number))
        assert not infotext_key(number).startswith("ControlNet")


def test_a_unit_with_defaults_says_only_what_it_used() -> None:
    assert json.loads(unit_to_infotext(Unit(images=REFS), REFS, {})) == {"refs": [ref[7:] for ref in REFS]}


def test_what_differs_from_the_defaults_is_written() -> None:
    record = json.loads(unit_to_infotext(Unit(images=("inline",), weight=0.5, crop="pad"), REFS[:1], RAN))
    assert record == {"weight": 0.5, "crop": "pad", "refs": [REFS[0][7:]], "ran": RAN}


def test_the_pose_photo_travels_by_its_digest() -> None:
    unit = Unit(images=REFS[:1], pose=("inline",), keypoints="pose", net_weight=0.5)
    record = json.loads(unit_to_infotext(unit, REFS[:1], {}, REFS[1:2]))
    assert record == {"net_weight": 0.5, "keypoints": "pose", "refs": [REFS[0][7:]], "pose": [REFS[1][7:]]}
    pasted = units_from_infotext({infotext_key(1): json.dumps(record)})
    assert pasted.units[0].unit == Unit(images=REFS[:1], pose=REFS[1:2], keypoints="pose", net_weight=0.5)
    assert not pasted.notes
    assert "pose" not in json.loads(unit_to_infotext(unit, REFS[:1], {})), "unless it was used"


def test_a_value_is_one_printable_ascii_line() -> None:
    value = unit_to_infotext(Unit(images=REFS, adapter="Ж画.bin"), REFS, {"adapter": "line\nbreak"})
    assert value.isascii()
    assert value.isprintable()


def test_only_digests_are_written_as_references() -> None:
    with pytest.raises(BadImageError):
        unit_to_infotext(Unit(images=("data:,x",)), ["data:,x"], {})


@pytest.mark.parametrize("seed", range(100))
def test_units_round_trip_through_the_host(seed: int) -> None:
    rng = random.Random(seed)
    units = [random_unit(rng) for _ in range(rng.randrange(1, 5))]
    ran = {"adapter": rng.choice(HOSTILE), "encoder": "clip_h"}
    params = {infotext_key(n): unit_to_infotext(unit, unit.images, ran) for n, unit in enumerate(units, 1)}
    pasted = units_from_infotext(through_the_host(params))
    assert pasted.notes == ()
    assert pasted.units == tuple(PastedUnit(n, unit, ran) for n, unit in enumerate(units, 1))


def test_objects_quoted_and_unquoted_text_read_alike() -> None:
    unit = Unit(images=REFS, weight=0.25, adapter='a"b\\c.bin')
    text = unit_to_infotext(unit, REFS, RAN)
    for value in (text, json.dumps(text), json.loads(text)):
        pasted = units_from_infotext({infotext_key(3): value, "Steps": "20"})
        assert pasted.notes == ()
        assert pasted.units == (PastedUnit(3, unit, RAN),)


def test_other_keys_are_not_ours() -> None:
    params = {"Steps": "20", "IP-Adapter": "{}", "IP-Adapter unit": "{}", "IP-Adapter unit 0": "{}"}
    assert units_from_infotext(params).units == ()
    assert units_from_infotext({}) == units_from_infotext(params)


def test_units_come_in_order_of_their_numbers() -> None:
    pasted = units_from_infotext({infotext_key(10): "{}", infotext_key(2): "{}"})
    assert [unit.number for unit in pasted.units] == [2, 10]


def test_a_newer_version_is_read_as_far_as_known() -> None:
    record = {"weight": 0.5, "mask": "left half", "refs": [REFS[0][7:]], "ran": {"adapter": "x", "lora": {"s": 1}}}
    pasted = units_from_infotext({infotext_key(1): json.dumps(record)})
    assert pasted.units == (PastedUnit(1, Unit(images=REFS[:1], weight=0.5), {"adapter": "x"}),)
    assert len(pasted.notes) == 2
    assert "IP-Adapter unit 1: 'mask' is not known to this version" in pasted.notes[0]


@pytest.mark.parametrize(
    ("record", "unit", "note"),
    [
        ({"weight": 9, "crop": "pad"}, Unit(crop="pad"), "weight is 9; it must be a number from -1 to 3"),
        ({"start": 0.9, "end": 0.1, "weight": 1}, Unit(weight=1), r"start is 0\.9 and end is 0\.1"),
        ({"enabled": False}, Unit(), "'enabled' is not known"),
        ({"images": ["/etc/passwd"]}, Unit(), "'images' is not known"),
        ({"refs": ["../../etc/passwd"]}, Unit(), "is not a SHA-256 digest"),
        ({"refs": ["http://host/a.png"]}, Unit(), "is not a SHA-256 digest"),
        ({"refs": [REFS[0], 5]}, Unit(images=REFS[:1]), "5 is not a SHA-256 digest"),
        ({"refs": "abc"}, Unit(), "refs is 'abc' and not a list"),
        ({"pose": "abc"}, Unit(), "pose is 'abc' and not a list"),
        ({"net_start": 0.9, "net_end": 0.1}, Unit(), r"net_start is 0\.9 and net_end is 0\.1"),
        ({"start": 0.9, "face": "1;2", "refs": [REFS[0][7:]]}, Unit(start=0.9, images=REFS[:1]), "names 2 choices"),
        ({"refs": [REFS[0][7:]] * 65}, Unit(images=REFS[:1] * 64), "65 references are named"),
        ({"ran": "x"}, Unit(), "ran is 'x' and not an object"),
    ],
)
def test_bad_parts_become_notes_and_the_rest_is_restored(record: object, unit: Unit, note: str) -> None:
    pasted = units_from_infotext({infotext_key(1): json.dumps(record)})
    assert [entry.unit for entry in pasted.units] == [unit]
    assert len(pasted.notes) == 1
    assert re.search(note, pasted.notes[0])


@pytest.mark.parametrize(
    "value",
    [
        *["", "{", "nonsense", "[1]", "5", "null", '"', '"\\"', None, 5, [1], *HOSTILE],
        *["[" * 60_000, '{"a":' * 10_000, "9" * 10_000, "x" * 10_000_000, '{"refs":["' + "a" * 10_000_000 + '"]}'],
    ],
    ids=lambda value: f"{str(value)[:8]!r}",
)
def test_hostile_values_never_raise(value: object) -> None:
    pasted = units_from_infotext({infotext_key(1): value})
    if value == "{}":
        assert pasted.units == (PastedUnit(1, Unit(), {}),)
    else:
        assert pasted.units == ()
        assert len(pasted.notes) == 1
        assert len(pasted.notes[0]) < 300


@pytest.mark.parametrize("seed", range(300))
def test_random_and_damaged_values_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    record = {name: random_json(rng) for name in rng.sample([*[spec.name for spec in FIELDS], "refs", "ran", "x"], 5)}
    text = json.dumps(record)
    if rng.random() < 0.5:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(HOSTILE) + text[at + rng.randrange(4) :]
    for value in (text, json.dumps(text), record):
        for pasted in units_from_infotext({infotext_key(1): value}).units:
            assert Unit.from_dict(pasted.unit.to_dict()) == pasted.unit


def test_a_drawn_region_is_named_by_its_digest_alone() -> None:
    unit = Unit(images=REFS, region=digest(b"mask"), feather=0.2)
    text = unit_to_infotext(unit, REFS, {})
    assert units_from_infotext(through_the_host({infotext_key(1): text})).units[0].unit == unit
    with pytest.raises(BadImageError, match="not the id of a stored picture"):
        unit_to_infotext(Unit(region="data:image/png;base64,AAAA"), (), {})


def test_a_box_survives_the_host() -> None:
    unit = Unit(images=REFS, region="0.1,0.25,0.5,0.5")
    text = unit_to_infotext(unit, REFS, {})
    assert json.loads(text)["region"] == "0.1,0.25,0.5,0.5"
    assert units_from_infotext(through_the_host({infotext_key(2): text})).units[0].unit == unit


def test_a_region_that_cannot_be_read_is_a_note() -> None:
    pasted = units_from_infotext({infotext_key(1): '{"region":"0,0,9,9","weight":0.5}'})
    assert pasted.units[0].unit == Unit(weight=0.5)
    assert "region" in pasted.notes[0]
