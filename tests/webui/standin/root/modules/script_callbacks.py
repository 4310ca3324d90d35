"""Callbacks that are not bound to a script: registration, order, and the rule that what they raise is swallowed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import errors


@dataclass
class CFGDenoiserParams:
    """What `on_cfg_denoiser` gets, before the UNet is called."""

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


@dataclass
class CFGDenoisedParams:
    """What `on_cfg_denoised` gets: every row's prediction, before guidance."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    inner_model: Any


@dataclass
class AfterCFGCallbackParams:
    """What `on_cfg_after_cfg` gets: the guided prediction."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    output_altered: bool = field(default=False)


@dataclass
class ExtraNoiseParams:
    """What `on_extra_noise` gets."""

    noise: Any
    x: Any
    xi: Any


@dataclass
class ImageSaveParams:
    """What `on_before_image_saved` and `on_image_saved` get."""

    image: Any
    p: Any
    filename: str
    pnginfo: dict[str, str]


@dataclass
class ScriptCallback:
    """One registered function and the file that registered it."""

    script: str
    callback: Any
    name: str = "unnamed"


CATEGORIES = ("app_started", "before_reload", "model_loaded", "ui_tabs", "ui_settings", "before_image_saved",
              "image_saved", "extra_noise", "cfg_denoiser", "cfg_denoised", "cfg_after_cfg", "before_component",
              "after_component", "infotext_pasted", "script_unloaded", "before_ui", "list_unets")
callback_map: dict[str, list[ScriptCallback]] = {name: [] for name in CATEGORIES}


def add_callback(category: str, callback, name: str | None) -> None:
    """Register `callback` under the name of the file that called the `on_...` function."""
    frames = [frame for frame in inspect.stack() if frame.filename != __file__]
    filename = frames[0].filename if frames else "unknown file"
    callback_map[category].append(ScriptCallback(filename, callback, name or "unnamed"))


def clear_callbacks() -> None:
    """Forget all callbacks (Reload UI)."""
    for callbacks in callback_map.values():
        callbacks.clear()


def remove_current_script_callbacks() -> None:
    """Forget the callbacks that the calling file registered."""
    frames = [frame for frame in inspect.stack() if frame.filename != __file__]
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if not frames or c.script != frames[0].filename]


def remove_callbacks_for_function(callback_func) -> None:
    """Forget one function everywhere."""
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.callback != callback_func]


def _fire(category: str, *args, backwards: bool = False, **kwargs) -> list[Any]:
    """Call a category's functions in order; what one raises is reported and the next one is called."""
    results = []
    callbacks = list(callback_map[category])
    for entry in reversed(callbacks) if backwards else callbacks:
        try:
            results.append(entry.callback(*args, **kwargs))
        except Exception:
            errors.report(f"Error executing callback {category} for {Path(entry.script).name}", exc_info=True)
    return results


def _registrar(category: str):
    def register(callback, *, name=None):
        add_callback(category, callback, name)

    register.__name__ = f"on_{category}"
    return register


on_app_started = _registrar("app_started")
on_before_reload = _registrar("before_reload")
on_model_loaded = _registrar("model_loaded")
on_ui_tabs = _registrar("ui_tabs")
on_ui_settings = _registrar("ui_settings")
on_before_image_saved = _registrar("before_image_saved")
on_image_saved = _registrar("image_saved")
on_extra_noise = _registrar("extra_noise")
on_cfg_denoiser = _registrar("cfg_denoiser")
on_cfg_denoised = _registrar("cfg_denoised")
on_cfg_after_cfg = _registrar("cfg_after_cfg")
on_before_component = _registrar("before_component")
on_after_component = _registrar("after_component")
on_infotext_pasted = _registrar("infotext_pasted")
on_script_unloaded = _registrar("script_unloaded")
on_before_ui = _registrar("before_ui")
on_list_unets = _registrar("list_unets")


def app_started_callback(demo, app) -> None:
    """The page and the API are up."""
    _fire("app_started", demo, app)


def app_reload_callback() -> None:
    """Reload UI begins."""
    _fire("before_reload")


def model_loaded_callback(sd_model) -> None:
    """A checkpoint was loaded."""
    _fire("model_loaded", sd_model)


def ui_settings_callback() -> None:
    """Settings are being collected."""
    _fire("ui_settings")


def before_ui_callback() -> None:
    """The page is about to be built."""
    _fire("before_ui", backwards=True)


def extra_noise_callback(params: ExtraNoiseParams) -> None:
    """Noise is about to be added in img2img."""
    _fire("extra_noise", params)


def cfg_denoiser_callback(params: CFGDenoiserParams) -> None:
    """One denoiser step begins."""
    _fire("cfg_denoiser", params)


def cfg_denoised_callback(params: CFGDenoisedParams) -> None:
    """The UNet has answered for every row."""
    _fire("cfg_denoised", params)


def cfg_after_cfg_callback(params: AfterCFGCallbackParams) -> None:
    """Guidance was applied."""
    _fire("cfg_after_cfg", params)


def before_component_callback(component, **kwargs) -> None:
    """A gradio component is about to be built."""
    _fire("before_component", component, **kwargs)


def after_component_callback(component, **kwargs) -> None:
    """A gradio component was built."""
    _fire("after_component", component, **kwargs)


def infotext_pasted_callback(infotext: str, params: dict[str, Any]) -> None:
    """An infotext was parsed for pasting."""
    _fire("infotext_pasted", infotext, params)


def script_unloaded_callback() -> None:
    """The scripts are about to be dropped; last registered, first called."""
    _fire("script_unloaded", backwards=True)
