"""ui-config.json: the components' defaults, by tab and label, written once and read ever after."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
from modules.ui_components import _InputAccordion

_FIELDS = {gr.Slider: ("value", "minimum", "maximum", "step"), gr.Radio: ("value",), gr.Checkbox: ("value",),
           gr.Textbox: ("value",), gr.Number: ("value",), gr.Dropdown: ("value",)}


class UiLoadsave:
    """The file's values; a component whose `do_not_save_to_config` is true is left alone."""

    def __init__(self, filename: str):
        self.path = Path(filename)
        self.ui_settings: dict[str, object] = {}
        if self.path.is_file():
            self.ui_settings = json.loads(self.path.read_text(encoding="utf-8"))

    def add_block(self, block, path: str = "") -> None:
        """Read (or note) the defaults of everything inside a tab."""
        for child in getattr(block, "children", None) or []:
            self.add_block(child, path)
        label = getattr(block, "label", None)
        kinds = [kind for kind in _FIELDS if type(block) is kind or (kind is gr.Checkbox
                                                                     and isinstance(block, _InputAccordion))]
        if not label or not kinds or getattr(block, "do_not_save_to_config", False):
            return
        for field in _FIELDS[kinds[0]]:
            self._apply(block, f"{path}/{label}", field)

    def _apply(self, component, path: str, field: str) -> None:
        key = f"{path}/{field}"
        source = getattr(component, "custom_script_source", None)
        if source is not None:
            key = f"customscript/{source}/{key}"
        if key not in self.ui_settings:
            self.ui_settings[key] = getattr(component, field)
            return
        saved = self.ui_settings[key]
        choices = getattr(component, "choices", None)
        if choices is not None and field == "value":
            names = [c[-1] if isinstance(c, (tuple, list)) else c for c in choices]
            values = saved if isinstance(saved, list) else [saved]
            if not all(value in names for value in values):
                return
        setattr(component, field, saved)
        if isinstance(component, _InputAccordion) and field == "value":
            component.accordion.open = bool(saved)

    def dump_defaults(self) -> None:
        """Write the file when it is not there yet or lacks a key."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.ui_settings, indent=4, ensure_ascii=False, default=lambda o: None),
                             encoding="utf-8")
