"""Units as infotext: one key per unit that ran, `IP-Adapter unit 1`, whose value is a compact JSON object.

The object holds the fields that differ from their defaults (a region's picture by its digest), `refs` and `pose` (the
SHA-256 digests of the reference files and of the pose photo's, whole, so that the store finds the pictures again and
another machine can tell which were used) and `ran`, what acted that is no field: `file`, the adapter found for "auto",
its `hash`, the `encoder`, and of a person `faces`, the face pack, `lora`, which LoRA was on and how strong, and `net`,
`net_hash` and `keypoints`, the IdentityNet and whose keypoints it was shown, `pose_face` ("2 of 3") where a face was
given out, and `region` where that followed from faces. `session.claims` writes it when the units are ready and again
after they have run; `webui` reads it on paste. A unit's identity score has a key of its own (`session.scoring`), which
is not read. The host quotes a value that holds a comma, colon or line break with `json.dumps` and unquotes it with
`json.loads` before handing it over (A1111, modules/infotext_utils.py: quote, unquote); both forms are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from ..library.errors import BadImageError, BadUnitError
from .field_spec import FieldSpec, read_json, shown
from .fields import ENABLED, FIELDS, FIELDS_BY_NAME, IMAGES
from .identity_fields import POSE
from .regions import is_picture
from .store import checked_id
from .unit import Unit

KEY = "IP-Adapter unit"
# 64 digests and every field at its longest stay below 10 KB; what is longer was not written by us.
MAX_CHARACTERS = 64 * 1024
_KEY_PATTERN = re.compile(rf"{KEY} ([1-9][0-9]?)")
_JOINED = (("start", "end"), ("net_start", "net_end"), ("face",))
"""Fields that may be good one by one and not go together, or not with the pictures."""
_SKIPPED = (ENABLED.name, IMAGES.name, POSE.name)


class PastedUnit(NamedTuple):
    """A unit read from infotext; `images` are store ids, which may or may not be in this machine's store.

    `ran` is what acted then (adapter file, fingerprint, encoder, face pack, LoRA), as text to show.
    """

    number: int
    unit: Unit
    ran: Mapping[str, str]


class Pasted(NamedTuple):
    """What an infotext says of us: units in ascending number, and a sentence for everything that was left out."""

    units: tuple[PastedUnit, ...]
    notes: tuple[str, ...]


def infotext_key(number: int) -> str:
    """The infotext key of the unit with this number, counted from 1.

    Word characters, spaces and '-' only, as the hosts' parser demands, and not beginning with "ControlNet", whose
    extension reads every such key as its own.
    """
    return f"{KEY} {number}"


def unit_to_infotext(unit: Unit, digests: Sequence[str], ran: Mapping[str, str], pose: Sequence[str] = ()) -> str:
    """The infotext value of a unit that ran, as ASCII JSON without line breaks.

    `digests` are the references' `sha256:…` ids in the unit's order, `pose` those of the pose photo; a region that is
    a picture must be one, too.
    Raises: BadImageError if one of them is no such id.
    """
    if is_picture(unit.region):
        checked_id(unit.region)
    record: dict[str, object] = {}
    for spec in FIELDS:
        value = cast(object, getattr(unit, spec.name))
        if spec.name not in _SKIPPED and value != spec.default:
            record[spec.name] = value
    record["refs"] = [checked_id(digest).removeprefix("sha256:") for digest in digests]
    if pose:
        record[POSE.name] = [checked_id(digest).removeprefix("sha256:") for digest in pose]
    if ran:
        record["ran"] = dict(ran)
    return json.dumps(record, separators=(",", ":"))


def units_from_infotext(params: Mapping[str, object]) -> Pasted:
    """Read our keys out of parsed infotext; a paste never fails, what cannot be read becomes a note."""
    units: list[PastedUnit] = []
    notes: list[str] = []
    for key, value in params.items():
        match = _KEY_PATTERN.fullmatch(key)
        if match is None:
            continue
        found: list[str] = []
        record = _read_record(value, found)
        if record is not None:
            units.append(_read_unit(int(match[1]), record, found))
        notes.extend(f"{key}: {note}" for note in found)
    units.sort(key=lambda pasted: pasted.number)
    return Pasted(tuple(units), tuple(notes))


def _read_record(value: object, notes: list[str]) -> Mapping[str, object] | None:
    """The JSON object in an infotext value, given as an object, as JSON, or as JSON that is still quoted."""
    read = value
    for _ in range(2):
        if not isinstance(read, str):
            break
        if len(read) > MAX_CHARACTERS:
            notes.append(f"ignored, because it is {len(read)} characters long and at most {MAX_CHARACTERS} are read.")
            return None
        try:
            read = read_json(read)
        except ValueError as error:
            notes.append(f"ignored, because {shown(value)} is not JSON ({error}).")
            return None
    if not isinstance(read, Mapping):
        notes.append(f"ignored, because {shown(value)} is not a JSON object.")
        return None
    return {str(key): item for key, item in cast("Mapping[object, object]", read).items()}


def _read_unit(number: int, record: Mapping[str, object], notes: list[str]) -> PastedUnit:
    values: dict[str, object] = {
        "images": _read_refs(record.get("refs"), IMAGES, notes),
        "pose": _read_refs(record.get("pose"), POSE, notes),
    }
    for name, value in record.items():
        if name in ("refs", "ran", POSE.name):
            continue
        if name not in FIELDS_BY_NAME or name in _SKIPPED:
            notes.append(f"{shown(name)} is not known to this version and was left out.")
            continue
        try:
            values[name] = FIELDS_BY_NAME[name].parse(value)
        except BadUnitError as error:
            notes.append(f"{error} The default is used.")
    for group in _JOINED:
        try:
            Unit.from_dict({name: values[name] for name in (IMAGES.name, *group) if name in values})
        except BadUnitError as error:
            notes.append(f"{error} The default is used.")
            values = {name: value for name, value in values.items() if name not in group}
    return PastedUnit(number, Unit.from_dict(values), _read_ran(record.get("ran"), notes))


def _read_refs(value: object, field: FieldSpec[tuple[str, ...]], notes: list[str]) -> list[str]:
    ids: list[str] = []
    if value is None:
        return ids
    if not isinstance(value, list):
        name = "refs" if field is IMAGES else field.name
        notes.append(f"{name} is {shown(value)} and not a list; no reference is restored.")
        return ids
    for item in cast("list[object]", value):
        try:
            ids.append(checked_id(item if isinstance(item, str) and ":" in item else f"sha256:{item}"))
        except BadImageError:
            notes.append(f"the reference {shown(item)} is not a SHA-256 digest and was left out.")
    limit = int(field.maximum or 0)
    if len(ids) > limit:
        notes.append(f"{len(ids)} references are named and a unit takes at most {limit}; the rest was left out.")
    return ids[:limit]


def _read_ran(value: object, notes: list[str]) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        notes.append(f"ran is {shown(value)} and not an object; it was left out.")
        return {}
    ran: dict[str, str] = {}
    for name, item in cast("Mapping[str, object]", value).items():
        if isinstance(item, (str, int, float)):
            ran[name] = str(item)
        else:
            notes.append(f"ran: {shown(name)} is {shown(item)}; it was left out.")
    return ran
