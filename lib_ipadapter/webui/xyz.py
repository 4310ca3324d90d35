"""Axes for the host's X/Y/Z plot, one per unit and field that is marked as an axis in the list of fields.

`scripts/ipadapter.py` registers `add_axes` for `on_before_ui`. The plot runs a shallow copy of `p` per cell, so a value
travels as the attribute `ipadapter_xyz` of that copy: a new dict each time, never a change to the one it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modules import scripts

from ..library.errors import BadUnitError
from ..units.field_spec import FieldSpec, Value
from ..units.fields import FIELDS

ATTRIBUTE = "ipadapter_xyz"
PLOT_SCRIPT = "xyz_grid.py"
BOOLEANS = ("true", "false")


def add_axes(max_units: int, adapter_names: Callable[[], Sequence[str]]) -> None:
    """Append our axes to the plot script's list, once; nothing where the host has no such script.

    `adapter_names` is called when a list of adapters is asked for in the page, never here.
    """
    plot = _plot_module()
    if plot is None:
        return
    present = {option.label for option in plot.axis_options}
    for unit in range(1, max_units + 1):
        for spec in FIELDS:
            label = axis_label(unit, spec)
            if spec.axis and spec.kind != "images" and label not in present:
                plot.axis_options.append(_axis(plot.AxisOption, label, unit, spec, adapter_names))


def axis_label(unit: int, spec: FieldSpec[Value]) -> str:
    """What the plot's drop-down calls the axis."""
    return f"[IP-Adapter] Unit {unit} {spec.label}"


def values_of(p: Any) -> dict[tuple[int, str], Any]:
    """What the plot asks of this job: {(unit number from 1, field): value}, already checked."""
    return dict(getattr(p, ATTRIBUTE, {}))


def _plot_module() -> Any:
    found = (data.module for data in scripts.scripts_data if Path(data.path).name == PLOT_SCRIPT)
    return next(found, None)


def _axis(
    option: Callable[..., Any],
    label: str,
    unit: int,
    spec: FieldSpec[Value],
    adapter_names: Callable[[], Sequence[str]],
) -> Any:
    more: dict[str, Any] = {"confirm": _confirm(label, spec)}
    if spec.kind == "bool":
        more["choices"] = lambda: list(BOOLEANS)
    elif spec.kind == "choice":
        more["choices"] = lambda: [value for value, _ in spec.choices]
    elif spec.kind == "adapter":
        more["choices"] = lambda: [str(spec.default), *adapter_names()]
    return option(label, float if spec.kind == "number" else str, _apply(unit, spec), **more)


def _apply(unit: int, spec: FieldSpec[Value]) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, _values: Any) -> None:
        setattr(p, ATTRIBUTE, {**values_of(p), (unit, spec.name): spec.parse(value)})

    return apply


def _confirm(label: str, spec: FieldSpec[Value]) -> Callable[[Any, Sequence[Any]], None]:
    """A check of the whole axis before the first cell is generated; the plot shows a RuntimeError's text."""

    def confirm(_p: Any, values: Sequence[Any]) -> None:
        for value in values:
            try:
                spec.parse(value)
            except BadUnitError as error:
                raise RuntimeError(f"{label}: {error}") from error

    return confirm
