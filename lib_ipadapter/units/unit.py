"""A unit: one reference (or several that act together) with its settings, always valid once it exists.

Also how the hosts' flat arguments become a `Request` (`webui.script` calls `parse_args`) and back (`page_values`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..library.errors import BadUnitError
from .face_choice import parse_face_choices
from .field_spec import read_json, shown
from .fields import (
    ADAPTER,
    CFG_RESCALE,
    COMBINE,
    CROP,
    ENABLED,
    END,
    FACE,
    FEATHER,
    FIELDS,
    FIELDS_BY_NAME,
    IMAGES,
    INTENT,
    LORA,
    REGION,
    S_SCALE,
    SCORE,
    START,
    UNCOND,
    UNCOND_NOISE,
    WEIGHT,
)
from .identity_fields import (
    FIT,
    IDENTITY_NET,
    KEYPOINTS,
    NET_END,
    NET_ENGINE,
    NET_ROWS,
    NET_START,
    NET_WEIGHT,
    POSE,
    POSE_FACE,
    SHOW_MAP,
)
from .other_names import unknown_key


@dataclass(frozen=True)
class Unit:
    """The fields of `fields.FIELDS`, in that order and with those defaults.

    Every value is checked and normalised on construction, also by `dataclasses.replace`.
    Raises: BadUnitError naming the field, the value and the accepted range.
    """

    enabled: bool = ENABLED.default
    intent: str = INTENT.default
    images: tuple[str, ...] = IMAGES.default
    combine: str = COMBINE.default
    adapter: str = ADAPTER.default
    weight: float = WEIGHT.default
    start: float = START.default
    end: float = END.default
    uncond: str = UNCOND.default
    uncond_noise: float = UNCOND_NOISE.default
    crop: str = CROP.default
    cfg_rescale: float = CFG_RESCALE.default
    face: str = FACE.default
    lora: float = LORA.default
    s_scale: float = S_SCALE.default
    score: bool = SCORE.default
    region: str = REGION.default
    feather: float = FEATHER.default
    identity_net: str = IDENTITY_NET.default
    net_weight: float = NET_WEIGHT.default
    net_start: float = NET_START.default
    net_end: float = NET_END.default
    net_rows: str = NET_ROWS.default
    net_engine: str = NET_ENGINE.default
    keypoints: str = KEYPOINTS.default
    pose: tuple[str, ...] = POSE.default
    pose_face: str = POSE_FACE.default
    fit: str = FIT.default
    show_map: bool = SHOW_MAP.default

    def __post_init__(self) -> None:
        for spec in FIELDS:
            object.__setattr__(self, spec.name, spec.parse(getattr(self, spec.name)))
        for start, end in ((START, END), (NET_START, NET_END)):
            first, last = getattr(self, start.name), getattr(self, end.name)
            if first > last:
                raise BadUnitError(
                    f"{start.name} is {first:g} and {end.name} is {last:g}; {start.name} must not be greater than "
                    f"{end.name} (both from {start.minimum:g} to {start.maximum:g})."
                )
        choices = len(parse_face_choices(self.face))
        if choices > max(1, len(self.images)) and self.images:
            raise BadUnitError(
                f"face names {choices} choices and the unit has {len(self.images)} "
                f"picture{'' if len(self.images) == 1 else 's'}; give one for all pictures, or one for each."
            )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> Unit:
        """Read a unit from a program's dict; what is left out has its default.

        Raises: BadUnitError for an unknown key (with the nearest known one) or a bad value.
        """
        for key in mapping:
            if key not in FIELDS_BY_NAME:
                raise BadUnitError(unknown_key(key))
        return cls(**cast("dict[str, Any]", dict(mapping)))

    def to_dict(self) -> dict[str, bool | float | str | list[str]]:
        """Every field as a JSON value; `from_dict` gives the same unit back."""
        values: dict[str, bool | float | str | list[str]] = {}
        for spec in FIELDS:
            value = getattr(self, spec.name)
            values[spec.name] = list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value
        return values


@dataclass(frozen=True)
class Request:
    """What one generation asks of the extension: the master switch and the units, in the user's numbering.

    `from_page` is true for the page's flat form, where a unit without pictures is an empty tab, not a mistake.
    """

    enabled: bool
    units: tuple[Unit, ...]
    from_page: bool

    @property
    def numbered(self) -> tuple[tuple[int, Unit], ...]:
        """The units that run, each with its number counted from 1 as on the tabs and in the infotext."""
        if not self.enabled:
            return ()
        return tuple((number, unit) for number, unit in enumerate(self.units, 1) if unit.enabled and unit.images)

    @property
    def active(self) -> tuple[Unit, ...]:
        """The units that run: switched on, with pictures, under a master switch that is on."""
        return tuple(unit for _, unit in self.numbered)

    def require_pictures(self) -> None:
        """Refuse a generation that asks for image prompts and has no reference; called before anything is read.

        Raises: BadUnitError. A program that switches every unit off by name has asked for nothing and passes.
        """
        if not self.enabled or self.active:
            return
        if any(unit.enabled for unit in self.units) or not self.units:
            raise BadUnitError(
                "IP-Adapter is on, but no unit has a reference picture; add one, or switch IP-Adapter off."
            )
        if self.from_page:
            raise BadUnitError(
                "IP-Adapter is on, but every unit is switched off; enable a unit, or switch IP-Adapter off."
            )


def parse_args(args: Sequence[object], max_units: int) -> Request:
    """Read a host's positional arguments, in the API's form or the page's.

    API: an optional master switch, then units: dicts, JSON-object strings, or lists (JSON arrays) of these; what
    follows them is the host's padding with page defaults and is ignored. Page: the master switch, then every field of
    `FIELDS` in order, for up to `max_units` units; missing units have the defaults.
    Raises: BadUnitError naming the unit, the field and what is accepted.
    """
    has_switch = bool(args) and not _is_unit_form(args[0])
    rest = args[1:] if has_switch else args
    if rest and _is_unit_form(rest[0]):
        return _api_request(_read_switch(args[0]) if has_switch else None, rest, max_units)
    enabled = _read_switch(args[0]) if args else False
    return Request(enabled, _page_units(rest, max_units) if enabled else (), from_page=True)


def page_values(units: Sequence[Unit], max_units: int, enabled: bool = True) -> list[bool | float | str]:
    """The page's flat form of these units, padded with defaults; `parse_args` gives them back.

    References become one string, a JSON array, or "" when there are none.
    Raises: BadUnitError when there are more units than the page has tabs.
    """
    _check_count(len(units), max_units)
    values: list[bool | float | str] = [enabled]
    for unit in [*units, *[Unit()] * (max_units - len(units))]:
        for value in unit.to_dict().values():
            values.append((json.dumps(value) if value else "") if isinstance(value, list) else value)
    return values


def _is_unit_form(value: object) -> bool:
    return isinstance(value, (Mapping, list, tuple)) or (isinstance(value, str) and value.lstrip()[:1] in ("{", "["))


def _read_switch(value: object) -> bool:
    try:
        return ENABLED.parse(value)
    except BadUnitError as error:
        raise BadUnitError(
            f"The first IP-Adapter argument is {shown(value)}; it must be the master switch, true or false, or a unit."
        ) from error


def _check_count(count: int, max_units: int) -> None:
    if count > max_units:
        raise BadUnitError(
            f"{count} IP-Adapter units were given, but this WebUI is set to at most {max_units}; "
            "send fewer, or raise the number of units in Settings > IP-Adapter."
        )


def _api_request(switch: bool | None, args: Sequence[object], max_units: int) -> Request:
    """`args` begins with the first unit; `switch` is None where the program sent none before it."""
    first = 1 if switch is None else 2
    mappings: list[Mapping[str, object]] = []
    used = 0
    while used < len(args) and _is_unit_form(args[used]):
        mappings.extend(_mappings_in(args[used], first + used))
        used += 1
    for position, value in enumerate(args[used:], first + used):
        # The page's defaults hold no dict, so this one was meant as a unit and must not vanish.
        if isinstance(value, Mapping):
            raise BadUnitError(
                f"IP-Adapter argument {position} is a unit, but argument {first + used} before it is "
                f"{shown(args[used])}; put the units one after the other."
            )
    _check_count(len(mappings), max_units)
    enabled = bool(mappings) if switch is None else switch
    units: list[Unit] = []
    for number, mapping in enumerate(mappings, 1):
        unit = _numbered(number, mapping)
        if enabled and unit.enabled and not unit.images:
            raise BadUnitError(
                f"IP-Adapter unit {number}: images is empty; give at least one reference picture, or set enabled to "
                "false."
            )
        units.append(unit)
    return Request(enabled, tuple(units), from_page=False)


def _mappings_in(value: object, position: int) -> Iterable[Mapping[str, object]]:
    read = value
    if isinstance(value, str):
        try:
            read = read_json(value)
        except ValueError as error:
            raise BadUnitError(
                f"IP-Adapter argument {position} begins like JSON but cannot be read: {error}."
            ) from error
    if isinstance(read, Mapping):
        yield cast("Mapping[str, object]", read)
        return
    for item in cast("Iterable[object]", read):
        if not (isinstance(item, Mapping) or (isinstance(item, str) and item.lstrip().startswith("{"))):
            raise BadUnitError(
                f"IP-Adapter argument {position} is a list of units, but holds {shown(cast(object, item))}; each must "
                "be an object."
            )
        yield from _mappings_in(cast(object, item), position)


def _page_units(values: Sequence[object], max_units: int) -> tuple[Unit, ...]:
    width = len(FIELDS)
    if len(values) % width or len(values) > width * max_units:
        raise BadUnitError(
            f"{len(values)} IP-Adapter values follow the master switch; {width} are expected for each of at most "
            f"{max_units} units ({', '.join(FIELDS_BY_NAME)}). Sending units as objects is simpler."
        )
    given = len(values) // width
    units = [
        _numbered(index + 1, dict(zip(FIELDS_BY_NAME, values[index * width : (index + 1) * width], strict=True)))
        for index in range(given)
    ]
    return tuple(units + [Unit()] * (max_units - given))


def _numbered(number: int, mapping: Mapping[str, object]) -> Unit:
    try:
        return Unit.from_dict(mapping)
    except BadUnitError as error:
        raise BadUnitError(f"IP-Adapter unit {number}: {error}") from error
