"""Axes for the host's X/Y/Z plot: every field that is marked as an axis in the list of fields, for every unit.

`webui.script` calls `add_axes` from its `on_before_ui` callback and `values_of` in each job. The plot runs a shallow
copy of `p` per cell, so a value travels as an attribute of that copy: a new dict each time, never a change to the one
that the copies share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modules import scripts

from ..library.errors import BadUnitError
from ..units.field_spec import FieldSpec
from ..units.fields import ADAPTER, FIELDS_BY_NAME
from ..units.schema import Axis, axes

ATTRIBUTE = "ipadapter_xyz"
PLOT_SCRIPT = "xyz_grid.py"


def add_axes(max_units: int, adapter_names: Callable[[], Sequence[str]]) -> None:
    """Append our axes to the plot script's list, once; nothing where the host has no such script.

    `adapter_names` is called when the page's user asks for an axis's choices, never here.
    """
    plot = next((data.module for data in scripts.scripts_data if Path(data.path).name == PLOT_SCRIPT), None)
    if plot is None:
        return
    present = {option.label for option in plot.axis_options}
    for unit in range(1, max_units + 1):
        for axis in axes():
            if axis_label(unit, axis) not in present:
                plot.axis_options.append(_option(plot.AxisOption, unit, axis, adapter_names))


def axis_label(unit: int, axis: Axis) -> str:
    """What the plot's drop-down calls the axis."""
    return f"[IP-Adapter] Unit {unit} {axis.label}"


def values_of(p: Any) -> dict[tuple[int, str], Any]:
    """What the plot asks of this job: {(unit number from 1, field): value}, already checked."""
    return dict(getattr(p, ATTRIBUTE, {}))


def _option(option: Callable[..., Any], unit: int, axis: Axis, adapter_names: Callable[[], Sequence[str]]) -> Any:
    spec, label = FIELDS_BY_NAME[axis.field], axis_label(unit, axis)
    more: dict[str, Any] = {"confirm": _confirm(label, spec)}
    if spec.name == ADAPTER.name:
        more["choices"] = lambda: [ADAPTER.default, *adapter_names()]
    elif axis.choices:
        more["choices"] = lambda: list(axis.choices)
    return option(label, axis.type, _apply(unit, spec), **more)


def _apply(unit: int, spec: FieldSpec[Any]) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, _values: Any) -> None:
        setattr(p, ATTRIBUTE, {**values_of(p), (unit, spec.name): spec.parse(value)})

    return apply


def _confirm(label: str, spec: FieldSpec[Any]) -> Callable[[Any, Sequence[Any]], None]:
    """A check of the whole axis before the first cell is generated; the plot shows a RuntimeError's text."""

    def confirm(_p: Any, values: Sequence[Any]) -> None:
        for value in values:
            try:
                spec.parse(value)
            except BadUnitError as error:
                raise RuntimeError(f"{label}: {error}") from error

    return confirm
