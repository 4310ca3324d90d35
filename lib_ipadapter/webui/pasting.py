"""What a pasted infotext makes of each component of the accordion.

`panel` pairs these with its components; the host calls them with the parsed infotext. Two that stand for the same
field are equal, so they also serve as the names by which "Send to" finds a field in the other tab.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..units.fields import ENABLED, FIELDS_BY_NAME
from ..units.infotext import PastedUnit, units_from_infotext
from .strip import message_line


@dataclass(frozen=True)
class PastedValue:
    """The value of a unit's field, or of the master switch where `number` is 0.

    None, which leaves the component as it is, for the settings of a unit that the infotext does not have; that unit
    is switched off where others are on.
    """

    number: int
    name: str

    def __call__(self, params: Mapping[str, object]) -> Any:
        pasted = units_from_infotext(params).units
        if self.number == 0:
            return bool(pasted)
        found = next((one for one in pasted if one.number == self.number), None)
        if found is not None:
            return shown_value(found, self.name)
        return False if pasted and self.name == ENABLED.name else None


@dataclass(frozen=True)
class PastedNotes:
    """The panel's message line: a sentence for everything in the infotext that could not be restored."""

    max_units: int

    def __call__(self, params: Mapping[str, object]) -> str:
        pasted = units_from_infotext(params)
        beyond = [str(one.number) for one in pasted.units if one.number > self.max_units]
        notes = list(pasted.notes)
        if beyond:
            notes.append(
                f"The picture used unit {', '.join(beyond)}, and this page has {self.max_units}; raise the number of "
                "units in Settings > IP-Adapter, reload the page and paste again."
            )
        return message_line(" ".join(notes))


def shown_value(pasted: PastedUnit, name: str) -> bool | float | str:
    """A field of a pasted unit as its component holds it: references as JSON text, a choice by its label."""
    value = pasted.unit.to_dict()[name]
    if isinstance(value, list):
        return json.dumps(value) if value else ""
    return dict(FIELDS_BY_NAME[name].choices).get(str(value), value)
