"""Units, and the requests that a host's positional arguments make."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from lib_ipadapter.library.errors import BadUnitError
from lib_ipadapter.units.fields import FIELDS
from lib_ipadapter.units.unit import Request, Unit, page_values, parse_args

from .test_fields import random_json

ONE = {"images": ["sha256:one"]}
TWO = {"images": ["sha256:two"], "weight": 0.5}
PAGE_DEFAULTS = page_values([], 2, enabled=False)


def test_a_unit_is_checked_however_it_is_made() -> None:
    unit = Unit(images=("a",), weight=0.3)
    with pytest.raises(BadUnitError, match="weight is 9"):
        dataclasses.replace(unit, weight=9)
    assert dataclasses.replace(unit, weight="1.5").weight == 1.5, "an XYZ cell may be text"  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        unit.weight = 2  # type: ignore[misc]


def test_start_may_not_pass_end() -> None:
    with pytest.raises(BadUnitError, match=r"start is 0\.6 and end is 0\.5"):
        Unit(start=0.6, end=0.5)
    assert Unit(start=0.5, end=0.5).start == 0.5


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [("imags", "images"), ("Weight", "weight"), ("model", "adapter"), ("guidance_start", "start"), ("image", "images")],
)
def test_an_unknown_key_is_named_with_a_suggestion(key: str, suggestion: str) -> None:
    with pytest.raises(BadUnitError, match=rf"no field '{key}'\. Did you mean {suggestion}\?"):
        Unit.from_dict({key: 1})


@pytest.mark.parametrize("key", ["module", "xyzzy", 5, None, "x" * 10_000])
def test_an_unknown_key_without_a_neighbour_lists_the_fields(key: object) -> None:
    with pytest.raises(BadUnitError, match="enabled, intent, images"):
        Unit.from_dict({key: 1})  # type: ignore[dict-item]


def test_dicts_round_trip_through_json() -> None:
    unit = Unit(False, "style", ("a", "b"), "average", "x.safetensors", -0.35, 0.1, 0.9, "noise", 0.35, "tiles", 0.7)
    assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit


@pytest.mark.parametrize(
    ("args", "enabled", "weights"),
    [
        ([ONE], True, [0.8]),
        ([True, ONE, TWO], True, [0.8, 0.5]),
        ([False, ONE], False, [0.8]),
        (["false", ONE], False, [0.8]),
        ([[ONE, TWO]], True, [0.8, 0.5]),
        ([True, [ONE], [TWO]], True, [0.8, 0.5]),
        ([json.dumps(TWO)], True, [0.5]),
        ([json.dumps([ONE, TWO])], True, [0.8, 0.5]),
        ([[json.dumps(ONE), TWO]], True, [0.8, 0.5]),
        ([(TWO,)], True, [0.5]),
        ([True, []], True, []),
        ([[]], False, []),
        # The hosts pad a short list with the page's defaults.
        ([ONE, *PAGE_DEFAULTS[1:]], True, [0.8]),
        ([True, ONE, *PAGE_DEFAULTS[2:]], True, [0.8]),
        ([ONE, TWO, *PAGE_DEFAULTS[2:]], True, [0.8, 0.5]),
    ],
)
def test_the_api_form(args: list[object], enabled: bool, weights: list[float]) -> None:
    request = parse_args(args, 2)
    assert (request.enabled, request.from_page) == (enabled, False)
    assert [unit.weight for unit in request.units] == weights
    assert request.active == (request.units if enabled else ())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([ONE, {"weight": 9, "images": ["a"]}], r"^IP-Adapter unit 2: weight is 9; it must be a number from -1 to 3"),
        ([{}], "unit 1: images is empty"),
        ([ONE, ONE, ONE], r"^3 IP-Adapter units were given, but this WebUI is set to at most 2"),
        ([[ONE, ONE, ONE]], "^3 IP-Adapter units"),
        ([ONE, None, ONE], "argument 3 is a unit, but argument 2 before it is None"),
        ([True, ONE, True, ONE], "argument 4 is a unit, but argument 3 before it is True"),
        (["{broken"], "argument 1 begins like JSON but cannot be read"),
        ([True, "[1, 2]"], "argument 2 is a list of units, but holds 1"),
        ([[ONE, "text"]], "argument 1 is a list of units, but holds 'text'"),
        ([[[ONE]]], "argument 1 is a list of units, but holds a value of type list"),
        (["[" * 100_000], "argument 1 begins like JSON"),
        (["9"], "first IP-Adapter argument is '9'"),
        ([None, ONE], "first IP-Adapter argument is None"),
        ([True, None], "1 IP-Adapter values follow"),
    ],
)
def test_api_mistakes_are_told(args: list[object], message: str) -> None:
    with pytest.raises(BadUnitError, match=message):
        parse_args(args, 2)


def test_a_disabled_unit_is_kept_out_and_keeps_its_number() -> None:
    request = parse_args([{"enabled": False}, ONE], 2)
    assert request.active == (request.units[1],)
    assert request.numbered == ((2, request.units[1]),)
    request.require_pictures()


def test_a_program_that_switches_all_units_off_asked_for_nothing() -> None:
    request = parse_args([{"enabled": False, "images": ["a"]}], 2)
    assert request.active == ()
    request.require_pictures()


def test_the_page_form_and_its_empty_tabs() -> None:
    units = (Unit(), Unit(images=("sha256:x", "a\nb:c"), adapter="m.bin"), Unit(enabled=False, images=("y",)))
    values = page_values(units, 4)
    assert len(json.loads(json.dumps(values))) == 1 + 4 * len(FIELDS)
    assert all(isinstance(value, (bool, int, float, str)) for value in values), "workers and queues carry scalars"
    request = parse_args(values, 4)
    assert request == Request(True, (*units, Unit()), from_page=True)
    assert request.numbered == ((2, units[1]),)
    request.require_pictures()


def test_the_page_asks_for_pictures_when_switched_on() -> None:
    for values in ([True], page_values([], 2), page_values([Unit(weight=0.2)], 2)):
        with pytest.raises(BadUnitError, match="no unit has a reference picture"):
            parse_args(values, 2).require_pictures()
    with pytest.raises(BadUnitError, match="every unit is switched off"):
        parse_args(page_values([Unit(enabled=False, images=("a",))], 1), 1).require_pictures()


def test_nothing_is_read_while_the_master_switch_is_off() -> None:
    for values in ([], [False], PAGE_DEFAULTS, [False, *["broken"] * (2 * len(FIELDS))]):
        request = parse_args(values, 2)
        assert not request.enabled
        assert request.active == ()
        request.require_pictures()


@pytest.mark.parametrize("extra", [1, len(FIELDS) - 1])
def test_flat_values_that_fit_no_unit_are_refused(extra: int) -> None:
    values = page_values([Unit(images=("a",))], 1) + [True] * extra
    expected = f"{len(FIELDS) + extra} IP-Adapter values follow the master switch; {len(FIELDS)} are"
    with pytest.raises(BadUnitError, match=expected):
        parse_args(values, 4)


def test_flat_values_for_more_units_than_tabs_are_refused() -> None:
    with pytest.raises(BadUnitError, match="at most 1 units"):
        parse_args(page_values([], 2), 1)
    with pytest.raises(BadUnitError, match="2 IP-Adapter units were given"):
        page_values([Unit(), Unit()], 1)


def test_flat_values_for_fewer_units_leave_defaults() -> None:
    request = parse_args(page_values([Unit(images=("a",))], 1), 3)
    assert request.units == (Unit(images=("a",)), Unit(), Unit())


def test_a_value_that_the_host_did_not_check_is_refused_with_its_unit() -> None:
    values = page_values([Unit(images=("a",))], 2)
    values[1 + [spec.name for spec in FIELDS].index("weight")] = "9"
    with pytest.raises(BadUnitError, match=r"^IP-Adapter unit 1: weight is '9'; it must be a number from -1 to 3"):
        parse_args(values, 2)


@pytest.mark.parametrize("seed", range(300))
def test_any_arguments_make_a_request_or_a_named_error(seed: int) -> None:
    rng = random.Random(seed)
    args: list[object] = [random_json(rng) for _ in range(rng.choice([0, 1, 2, 5, 11, 21]))]
    for position in range(len(args)):
        if rng.random() < 0.3:
            args[position] = {spec.name: random_json(rng) for spec in rng.sample(FIELDS, 2)} | ONE
    if args and rng.random() < 0.5:
        args[0] = True
    try:
        request = parse_args(args, 2)
    except BadUnitError as error:
        assert str(error)
    else:
        assert len(request.units) <= 2
        for unit in request.active:
            assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit
