"""One tab's scripts: their components, their place in the argument list, and the calls into them."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from modules import errors
from modules.api.models import ScriptArg, ScriptInfo
from modules.script_base import AlwaysVisible, Script

from tests.webui.standin import launching


def wrap_call(func, filename, funcname, *args, default=None, **kwargs):
    """Call a function of a script; what it raises is reported, and `default` is the answer."""
    try:
        return func(*args, **kwargs)
    except Exception:
        errors.report(f"Error calling: {filename}/{funcname}", exc_info=True)
    return default


class ScriptRunner:
    """The scripts of txt2img or of img2img."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.selectable_scripts: list[Script] = []
        self.alwayson_scripts: list[Script] = []
        self.titles: list[str] = []
        self.title_map: dict[str, Script] = {}
        self.infotext_fields: list[object] = []
        self.paste_field_names: list[str] = []
        self.inputs: list[object] = [None]

    def initialize_scripts(self, is_img2img: bool) -> None:
        """Make one object of each registered class; one whose constructor raises is reported and left out."""
        from modules.scripts import scripts_data

        for some in (self.scripts, self.alwayson_scripts, self.selectable_scripts):
            some.clear()
        for data in scripts_data:
            try:
                script = data.script_class()
            except Exception:
                errors.report(f"Error # failed to initialize Script {data.module}: ", exc_info=True)
                continue
            script.filename = data.path
            script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
            script.tabname = "img2img" if is_img2img else "txt2img"
            visibility = script.show(is_img2img)
            if visibility is AlwaysVisible:
                script.alwayson = True
                self.scripts.append(script)
                self.alwayson_scripts.append(script)
            elif visibility:
                self.scripts.append(script)
                self.selectable_scripts.append(script)

    def create_script_ui(self, script: Script) -> None:
        """Call `ui()` once for the page; a script whose `ui()` raises has no arguments."""
        script.args_from = script.args_to = len(self.inputs)
        try:
            self._create_script_ui(script)
        except Exception:
            errors.report(f"Error creating UI for {script.name}: ", exc_info=True)

    def _create_script_ui(self, script: Script) -> None:
        controls = wrap_call(script.ui, script.filename, "ui", script.is_img2img)
        script.controls = controls
        if controls is None:
            return
        script.name = wrap_call(script.title, script.filename, "title", default=script.filename).lower()
        for control in controls:
            control.custom_script_source = Path(script.filename).name
        script.api_info = ScriptInfo(name=script.name, is_img2img=script.is_img2img, is_alwayson=script.alwayson,
                                     args=[_arg_info(control) for control in controls])
        self.infotext_fields += script.infotext_fields or []
        self.paste_field_names += script.paste_field_names or []
        self.inputs += controls
        script.args_to = len(self.inputs)

    def prepare_ui(self) -> None:
        """Forget the page's components (Reload UI)."""
        self.inputs = [None]

    def setup_ui(self) -> list[object]:
        """Build every script's components inside the tab; returns the inputs of Generate after the tab's own."""
        titles = [wrap_call(s.title, s.filename, "title") or s.filename for s in self.scripts]
        self.title_map = {title.lower(): script for title, script in zip(titles, self.scripts, strict=True)}
        self.titles = [wrap_call(s.title, s.filename, "title") or "[error]" for s in self.selectable_scripts]
        always = self.alwayson_scripts
        if launching.is_forge():
            always = sorted(always, key=lambda script: script.sorting_priority)
        for script in always:
            if script.section is None:
                self._in_group(script, visible=True)
        dropdown = gr.Dropdown(label="Script", elem_id="script_list", choices=["None", *self.titles], value="None",
                               type="index")
        self.inputs[0] = dropdown
        for script in self.selectable_scripts:
            self._in_group(script, visible=False)
        return self.inputs

    def _in_group(self, script: Script, visible: bool) -> None:
        if not script.create_group:
            self.create_script_ui(script)
            return
        with gr.Group(visible=visible) as group:
            self.create_script_ui(script)
        script.group = group

    def script(self, title: str):
        """The script of that title, any case."""
        return self.title_map.get(title.lower())

    def run(self, p, *args):
        """Run the script chosen in the drop-down; None when there is none."""
        index = args[0]
        if not index:
            return None
        script = self.selectable_scripts[index - 1]
        return script.run(p, *args[script.args_from:script.args_to])

    def setup_scrips(self, p, *, is_ui: bool = True) -> None:
        """Call `setup` (the host spells the method like this)."""
        self._call("setup", p, only=None if is_ui else (lambda script: not script.setup_for_ui_only))

    def _call(self, name: str, p, *first, only=None, **kwargs) -> None:
        for script in self.alwayson_scripts:
            if getattr(type(script), name, None) is getattr(Script, name, None) or (only and not only(script)):
                continue
            try:
                args = p.script_args[script.args_from:script.args_to]
                getattr(script, name)(p, *first, *args, **kwargs)
            except Exception:
                errors.report(f"Error running {name}: {script.filename}", exc_info=True)

    def component_callback(self, name: str, component, elem_id, **kwargs) -> None:
        """Call `before_component` or `after_component` and the functions registered for that id."""
        from modules.script_base import OnComponent

        for script in self.scripts:
            registered = getattr(script, f"on_{name}_elem_id") or []
            for wanted, callback in registered:
                if wanted == elem_id:
                    wrap_call(callback, script.filename, f"on_{name}", OnComponent(component))
            wrap_call(getattr(script, name), script.filename, name, component, elem_id=elem_id, **kwargs)


def _swallowing(name: str):
    def call(self, p, *first, **kwargs):
        self._call(name, p, *first, **kwargs)

    call.__name__ = name
    return call


CALLBACKS = ("before_process", "process", "before_process_init_images", "before_process_batch",
             "after_extra_networks_activate", "process_batch", "process_before_every_sampling", "before_hr",
             "post_sample", "on_mask_blend", "postprocess_batch", "postprocess_batch_list", "postprocess_image",
             "postprocess_maskoverlay", "postprocess_image_after_composite", "postprocess")
for _name in CALLBACKS:
    setattr(ScriptRunner, _name, _swallowing(_name))


def _arg_info(control) -> ScriptArg:
    info = ScriptArg(label=control.label or "")
    for name in ("value", "minimum", "maximum", "step"):
        value = getattr(control, name, None)
        if value is not None:
            setattr(info, name, value)
    choices = getattr(control, "choices", None)
    if choices is not None:
        info.choices = [c[0] if isinstance(c, (tuple, list)) else c for c in choices]
    return info
