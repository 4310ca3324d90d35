"""The accordion: one switch and, per unit, a tab of components generated from the list of fields.

`webui.script` calls `build_panel` in its `ui()`, as often as the host wants: building lists nothing, reads no file and
keeps no state. What the components do is in `events`, what a pasted infotext means in `pasting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..units.field_spec import FieldSpec
from ..units.fields import (
    ADAPTER,
    CFG_RESCALE,
    COMBINE,
    CROP,
    ENABLED,
    END,
    FACE,
    FEATHER,
    FIELDS,
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
from ..units.identity_fields import (
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
from .compat import accordion, keep_out_of_ui_config, tool_button, with_tooltip
from .events import NO_NET, Events, Services
from .pasting import PastedNotes, PastedValue
from .strip import message_line, strip_html

TITLE = "IP-Adapter"
REFRESH_SYMBOL = "\U0001f504"
# Rows of a tab, by field; a field that is in none of them gets a row of its own at the end. Those of a face are shown
# where they mean something: the page's script marks the unit, and style.css hides them in the others.
ROWS: tuple[tuple[str, ...], ...] = (
    (ENABLED.name, INTENT.name),
    (IMAGES.name,),
    (ADAPTER.name,),
    (FACE.name,),
    (LORA.name, S_SCALE.name),
    (IDENTITY_NET.name, NET_WEIGHT.name, NET_START.name, NET_END.name),
    (POSE.name,),
    (KEYPOINTS.name, POSE_FACE.name, FIT.name, NET_ROWS.name, NET_ENGINE.name, SHOW_MAP.name),
    (WEIGHT.name, START.name, END.name),
    (REGION.name, FEATHER.name),
    (COMBINE.name, CROP.name),
    (UNCOND.name, UNCOND_NOISE.name, CFG_RESCALE.name),
    (SCORE.name,),
)
RADIOS = (INTENT.name,)


class Panel(NamedTuple):
    """What the host needs of a built accordion.

    `inputs` is the master switch, then each unit's fields in the order of `FIELDS`. `infotext_fields` pairs components
    with what a paste makes of them; `paste_field_names` names those that "Send to" carries to the other tab.
    """

    inputs: list[Any]
    infotext_fields: list[tuple[Any, Callable[[dict[str, Any]], Any]]]
    paste_field_names: list[Any]


@dataclass
class UnitTab:
    """One unit's components: its fields by name, and what is around them."""

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    inbox: Any = None
    pose_inbox: Any = None
    strip: Any = None
    preview: Any = None
    message: Any = None
    adapter_line: Any = None
    refresh: Any = None
    turn: Any = None
    draw: Any = None


def build_panel(*, tab: str, max_units: int, services: Services) -> Panel:
    """Build the accordion of one tab ("txt2img" or "img2img") inside the current gradio context."""
    prefix = f"{tab}_ipadapter"
    with accordion(TITLE, prefix) as master:
        notice = gr.HTML(_notice(services), elem_id=f"{prefix}_notice", elem_classes=["ipadapter-message"])
        with gr.Tabs(elem_id=f"{prefix}_units", elem_classes=["ipadapter-tabs"]):
            units = [_unit_tab(prefix, number) for number in range(1, max_units + 1)]
        with gr.Row(elem_classes=["ipadapter-footer"]):
            load = gr.Button(
                "Read the adapter list", elem_id=f"{prefix}_load", elem_classes=["ipadapter-load", "ipadapter-hidden"]
            )
            delete = gr.Button(
                "Delete stored references",
                elem_id=f"{prefix}_delete_store",
                elem_classes=["ipadapter-delete-store"],
                size="sm",
            )
    for button in (load, delete):
        keep_out_of_ui_config(button)
    _listen(Events(services), prefix, units, notice, load, delete)
    return _panel(master, notice, units, max_units)


def _notice(services: Services) -> str:
    return message_line(services.host_notice())


def _unit_tab(prefix: str, number: int) -> UnitTab:
    """Build one unit's tab."""
    unit = UnitTab(number)
    elem_id = f"{prefix}_unit{number}"
    placed = {name for row in ROWS for name in row}
    rest = tuple((spec.name,) for spec in FIELDS if spec.name not in placed)
    specs = {spec.name: spec for spec in FIELDS}
    with (
        gr.Tab(f"Unit {number}", elem_id=f"{elem_id}_tab"),
        gr.Column(elem_id=elem_id, elem_classes=["ipadapter-unit"]),
    ):
        for row in ROWS + rest:
            if row == (IMAGES.name,):
                _references(unit, elem_id)
            elif row == (ADAPTER.name,):
                _adapter_row(unit, elem_id)
            elif row == (POSE.name,):
                _pose_row(unit, elem_id)
            else:
                with gr.Row(elem_classes=["ipadapter-row", f"ipadapter-row-{row[0]}"]):
                    for name in row:
                        unit.fields[name] = _component(specs[name], elem_id)
    return unit


def _references(unit: UnitTab, elem_id: str) -> None:
    """The strip, and what the page's script works with: a text box through which it sends files, the one that holds the
    references, the number of a drawing and the button that asks for it.

    Only the references are an argument of a job. Components that are not visible are not in the page, so these are
    hidden by a class.
    """
    with gr.Column(elem_classes=["ipadapter-references"]):
        unit.strip = gr.HTML(strip_html(unit.number, ()), elem_id=f"{elem_id}_strip")
        unit.message = gr.HTML(message_line(""), elem_id=f"{elem_id}_message", elem_classes=["ipadapter-message"])
        unit.preview = gr.HTML("", elem_id=f"{elem_id}_preview")
        unit.inbox = gr.Textbox(
            label=f"Upload to unit {unit.number}",
            elem_id=f"{elem_id}_inbox",
            elem_classes=["ipadapter-inbox", "ipadapter-hidden"],
        )
        unit.turn = gr.Textbox(
            label=f"Drawing of unit {unit.number}", elem_id=f"{elem_id}_turn", elem_classes=["ipadapter-hidden"]
        )
        unit.draw = gr.Button(
            f"Draw unit {unit.number}", elem_id=f"{elem_id}_draw", elem_classes=["ipadapter-hidden"]
        )
        for component in (unit.inbox, unit.turn, unit.draw):
            keep_out_of_ui_config(component)
        unit.fields[IMAGES.name] = _component(IMAGES, elem_id)


def _pose_row(unit: UnitTab, elem_id: str) -> None:
    """Two buttons that the page's script listens to, and the text box through which it sends the photo."""
    with gr.Row(elem_classes=["ipadapter-row", "ipadapter-row-pose"]):
        buttons = [
            gr.Button(text, elem_id=f"{elem_id}_pose_{name}", elem_classes=[f"ipadapter-pose-{name}"], size="sm")
            for name, text in (("choose", "Choose a pose photo"), ("remove", "Remove the pose photo"))
        ]
        unit.pose_inbox = gr.Textbox(
            label=f"Pose photo to unit {unit.number}",
            elem_id=f"{elem_id}_pose_inbox",
            elem_classes=["ipadapter-pose-inbox", "ipadapter-hidden"],
        )
        for component in (*buttons, unit.pose_inbox):
            keep_out_of_ui_config(component)
        unit.fields[POSE.name] = _component(POSE, elem_id)


def _adapter_row(unit: UnitTab, elem_id: str) -> None:
    with gr.Row(elem_classes=["ipadapter-row", "ipadapter-row-adapter"]):
        unit.fields[ADAPTER.name] = _component(ADAPTER, elem_id)
        unit.refresh = tool_button(REFRESH_SYMBOL, f"{elem_id}_refresh", "Look for adapters and encoders again")
        keep_out_of_ui_config(unit.refresh)
    unit.adapter_line = gr.HTML(
        message_line("", error=False), elem_id=f"{elem_id}_adapter_line", elem_classes=["ipadapter-message"]
    )


def _component(spec: FieldSpec[Any], elem_id: str) -> Any:
    """The component that a field's kind calls for. Choices are shown and sent by their labels, which parse as well."""
    common: dict[str, Any] = {
        "label": spec.label,
        "elem_id": f"{elem_id}_{spec.name}",
        "elem_classes": [f"ipadapter-{spec.name}"],
    }
    if spec.kind == "bool":
        component = gr.Checkbox(value=bool(spec.default), **common)
    elif spec.kind == "number":
        component = gr.Slider(
            minimum=spec.minimum or 0.0, maximum=spec.maximum or 1.0, step=spec.step, value=spec.default, **common
        )
    elif spec.kind == "choice":
        labels = dict(spec.choices)
        kind = gr.Radio if spec.name in RADIOS else gr.Dropdown
        component = kind(choices=list(labels.values()), value=labels[str(spec.default)], **common)
    elif spec.kind == "region":
        labels = dict(spec.choices)
        component = gr.Dropdown(
            choices=list(labels.values()), value=labels[str(spec.default)], allow_custom_value=True, **common
        )
    elif spec.kind == "adapter":
        # The list is read later, and a pasted adapter may not be in it: gradio 4 drops values that are not choices.
        choices = [spec.default, *([NO_NET] if spec is IDENTITY_NET else [])]
        component = gr.Dropdown(choices=choices, value=spec.default, allow_custom_value=True, **common)
    else:
        common["elem_classes"] += ["ipadapter-hidden"] if spec.kind == "images" else []
        component = gr.Textbox(value=spec.default if spec.kind in ("face", "one_face", "keypoints") else "", **common)
    return keep_out_of_ui_config(with_tooltip(component, spec.help))


def _listen(events: Events, prefix: str, units: Sequence[UnitTab], notice: Any, load: Any, delete: Any) -> None:
    """Connect the components. Nothing waits for the queue in which generations stand."""
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    adapters = [unit.fields[ADAPTER.name] for unit in units]
    redraw = f"() => ipadapterDrawings.redrawUnits('{prefix}')"
    nets = [unit.fields[IDENTITY_NET.name] for unit in units]
    load.click(events.list_nets, inputs=nets, outputs=nets, **quiet)
    load.click(events.list_adapters, inputs=adapters, outputs=adapters, **quiet).then(None, _js=redraw)
    delete.click(events.delete_stored, inputs=[], outputs=[notice], **quiet).then(
        None, _js="() => ipadapterDrawings.redrawUnits()"
    )
    for unit in units:
        _listen_to_unit(events, f"{prefix}_unit{unit.number}", unit, quiet)
        refreshed = unit.refresh.click(events.refresh, inputs=adapters, outputs=[notice, *adapters], **quiet)
        refreshed.then(events.list_nets, inputs=nets, outputs=nets, **quiet).then(None, _js=redraw)


def _listen_to_unit(events: Events, elem_id: str, unit: UnitTab, quiet: dict[str, Any]) -> None:
    """Every change asks the script for a drawing, and the script asks the server for one at a time."""
    images = unit.fields[IMAGES.name]
    of_net = (IDENTITY_NET, POSE, KEYPOINTS, POSE_FACE, FIT)
    drawn = [unit.fields[spec.name] for spec in (IMAGES, CROP, ADAPTER, INTENT, FACE, *of_net)]
    pose = unit.fields[POSE.name]
    unit.pose_inbox.input(
        events.add_pose, inputs=[unit.pose_inbox, pose], outputs=[unit.pose_inbox, pose, unit.message], **quiet
    )
    # "input" fires for what the script puts in and not when the answer empties the box again.
    unit.inbox.input(
        events.add_upload, inputs=[unit.inbox, images], outputs=[unit.inbox, images, unit.message], **quiet
    )
    # "change" also fires when a paste or "Send to" has set a component.
    for component in drawn:
        component.change(None, _js=f"() => ipadapterDrawings.redraw('{elem_id}')")
    unit.draw.click(
        partial(events.draw, unit.number),
        inputs=[unit.turn, *drawn],
        outputs=[unit.strip, unit.preview, unit.adapter_line],
        _js=f"(...values) => ipadapterDrawings.numbered('{elem_id}', values.slice(0, {1 + len(drawn)}))",
        **quiet,
    )


def _panel(master: Any, notice: Any, units: Sequence[UnitTab], max_units: int) -> Panel:
    inputs = [master]
    fields: list[tuple[Any, Callable[[dict[str, Any]], Any]]] = [(master, PastedValue(0, ""))]
    for unit in units:
        for spec in FIELDS:
            inputs.append(unit.fields[spec.name])
            fields.append((unit.fields[spec.name], PastedValue(unit.number, spec.name)))
    # "Send to" compares the names of both tabs' fields, and these compare equal.
    names = [name for _, name in fields]
    return Panel(inputs, [*fields, (notice, PastedNotes(max_units))], names)
