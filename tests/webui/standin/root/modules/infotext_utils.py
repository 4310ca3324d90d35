"""Pasting infotexts into the page and sending pictures and values between tabs."""

from __future__ import annotations

import sys

import gradio as gr
from modules import errors, script_callbacks, shared
from modules.infotext_text import parse_generation_parameters as parse_text
from modules.infotext_text import quote, unquote

sys.modules["modules.generation_parameters_copypaste"] = sys.modules[__name__]  # the module's older name

__all__ = ["ParamBinding", "PasteField", "connect_paste", "parse_generation_parameters", "quote",
           "register_paste_params_button", "unquote"]


class PasteField(tuple):
    """`(component, key or function)` with the name of the API field that it also fills."""

    def __new__(cls, component, target, *, api=None):
        return super().__new__(cls, (component, target))

    def __init__(self, component, target, *, api=None):
        super().__init__()
        self.api = api
        self.component = component
        self.label = target if isinstance(target, str) else None
        self.function = target if callable(target) else None


class ParamBinding:
    """A button that fills a tab from a text, a picture or another tab."""

    def __init__(self, paste_button, tabname, source_text_component=None, source_image_component=None,
                 source_tabname=None, override_settings_component=None, paste_field_names=None):
        self.paste_button = paste_button
        self.tabname = tabname
        self.source_text_component = source_text_component
        self.source_image_component = source_image_component
        self.source_tabname = source_tabname
        self.override_settings_component = override_settings_component
        self.paste_field_names = paste_field_names or []


paste_fields: dict[str, dict[str, object]] = {}
registered_param_bindings: list[ParamBinding] = []


def reset() -> None:
    """Forget the page (Reload UI)."""
    paste_fields.clear()
    registered_param_bindings.clear()


def parse_generation_parameters(x: str, skip_fields=None):
    """Fields of an infotext, without those that the setting says to skip."""
    return parse_text(x, shared.opts.infotext_skip_pasting if skip_fields is None else skip_fields)


def add_paste_fields(tabname, init_img, fields, override_settings_component=None) -> None:
    """Declare what can be pasted into a tab."""
    fields = [field if isinstance(field, PasteField) else PasteField(*field) for field in fields]
    paste_fields[tabname] = {"init_img": init_img, "fields": fields,
                             "override_settings_component": override_settings_component}


def register_paste_params_button(binding: ParamBinding) -> None:
    """Remember a button; the page connects it when all tabs are there."""
    registered_param_bindings.append(binding)


def _value(component, target, params):
    """A component's new value: by key, converted to the type of the present one, or by function."""
    if callable(target):
        try:
            value = target(params)
        except Exception:
            errors.report(f"Error executing {target}", exc_info=True)
            value = None
    else:
        value = params.get(target)
    if value is None:
        return gr.update()
    if isinstance(value, dict) and "__type__" in value:  # an update of gradio's own
        return value
    kind = type(getattr(component, "value", None))
    try:
        if kind is bool and value in ("False", "0"):
            value = False
        elif kind in (bool, int, float, str):
            value = int(float(value)) if kind is int else kind(value)
    except ValueError:
        return gr.update()
    return gr.update(value=value)


def connect_paste(button, fields, input_comp, override_settings_component, tabname) -> None:
    """A click parses the text and fills the tab; scripts hear of it first."""

    def paste(prompt: str):
        params = parse_generation_parameters(prompt)
        script_callbacks.infotext_pasted_callback(prompt, params)
        return [_value(component, target, params) for component, target in fields]

    button.click(fn=paste, inputs=[input_comp], outputs=[component for component, _ in fields],
                 show_progress=False)
    button.click(fn=None, _js=f"recalculate_prompts_{tabname}", inputs=[], outputs=[], show_progress=False)


def connect_paste_params_buttons(switch) -> None:
    """Connect the remembered buttons; `switch(button, tabname)` adds the jump to the tab."""
    for binding in registered_param_bindings:
        target = paste_fields[binding.tabname]
        if binding.source_image_component is not None and target["init_img"] is not None:
            binding.paste_button.click(fn=first_picture, inputs=[binding.source_image_component],
                                       outputs=[target["init_img"]], show_progress=False)
        if binding.source_text_component is not None:
            connect_paste(binding.paste_button, target["fields"], binding.source_text_component,
                          binding.override_settings_component, binding.tabname)
        if binding.source_tabname is not None:
            names = {"Prompt", "Negative prompt", "Steps", *binding.paste_field_names}
            names |= {"Seed"} if shared.opts.send_seed else set()
            sources = [c for c, name in paste_fields[binding.source_tabname]["fields"] if name in names]
            targets = [c for c, name in target["fields"] if name in names]
            binding.paste_button.click(fn=lambda *values: values if len(values) != 1 else values[0], inputs=sources,
                                       outputs=targets, show_progress=False)
        switch(binding.paste_button, binding.tabname)


def first_picture(gallery):
    """The first picture of a gallery's value, in any of gradio's forms, as something an Image component takes."""
    if not gallery:
        return None
    item = gallery[0]
    if isinstance(item, dict):
        return item.get("name") or item.get("path") or (item.get("image") or {}).get("path")
    return item[0] if isinstance(item, (tuple, list)) else item
