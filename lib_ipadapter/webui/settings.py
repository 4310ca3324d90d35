"""The extension's settings: their registration with the host, and a typed reader for each.

`webui.script` registers `register_settings` for `on_ui_settings`; whoever needs a value calls its reader. A reader
answers with the default where the option is absent or unusable (an older config.json, a job before the page).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import gradio as gr
from modules import shared

SECTION = ("ipadapter", "IP-Adapter")
MAX_UNITS = "ipadapter_max_units"
ON_FAILURE = "ipadapter_on_failure"
EXTRA_FOLDERS = "ipadapter_extra_folders"
STORE_MB = "ipadapter_store_mb"
STORE_FOLDER = "ipadapter_store_folder"
INLINE_REFERENCES = "ipadapter_inline_references"
CACHE_MB = "ipadapter_cache_mb"

STOP = "stop"
CONTINUE = "continue with a warning"
DEFAULTS: dict[str, Any] = {
    MAX_UNITS: 4,
    ON_FAILURE: STOP,
    EXTRA_FOLDERS: "",
    STORE_MB: 500,
    STORE_FOLDER: "",
    INLINE_REFERENCES: False,
    CACHE_MB: 256,
}
MEGABYTE = 1024 * 1024


def register_settings() -> None:
    """Add the section "IP-Adapter" to the host's settings page."""
    option = shared.OptionInfo
    slider, text = gr.Slider, gr.Textbox
    add = shared.opts.add_option
    units = {"minimum": 1, "maximum": 10, "step": 1}
    info = {
        MAX_UNITS: option(DEFAULTS[MAX_UNITS], "Number of units", slider, units, section=SECTION).needs_reload_ui(),
        ON_FAILURE: option(
            DEFAULTS[ON_FAILURE],
            "When a unit cannot do what was asked of it",
            gr.Radio,
            {"choices": [STOP, CONTINUE]},
            section=SECTION,
        ).info("a warning is shown with the result and written to its infotext"),
        EXTRA_FOLDERS: option(
            DEFAULTS[EXTRA_FOLDERS], "More folders with adapters and encoders", text, {"lines": 2}, section=SECTION
        ).info("one per line; searched with their sub-folders, beside models/ipadapter and ControlNet's folders"),
        STORE_MB: option(
            DEFAULTS[STORE_MB],
            "Keep reference pictures up to this many MB",
            slider,
            {"minimum": 0, "maximum": 10000, "step": 50},
            section=SECTION,
        ).info("pasting an old picture's infotext finds its references here; least recently used out first; 0 = off"),
        STORE_FOLDER: option(
            DEFAULTS[STORE_FOLDER], "Folder of the kept reference pictures", text, section=SECTION
        ).info("empty: ipadapter-references in the WebUI's data folder; the button in the accordion deletes them"),
        INLINE_REFERENCES: option(
            DEFAULTS[INLINE_REFERENCES], "Send reference pictures inside the job's arguments", section=SECTION
        ).info("for extensions that run jobs on other machines; on by itself where one is known to be loaded"),
        CACHE_MB: option(
            DEFAULTS[CACHE_MB],
            "Keep encoded references in memory up to this many MB",
            slider,
            {"minimum": 0, "maximum": 1024, "step": 16},
            section=SECTION,
        ).info("a second job with the same pictures then needs no encoder"),
    }
    for key, one in info.items():
        add(key, one)


def max_units() -> int:
    """Number of units on the page and in a job, 1 to 10."""
    return min(max(int(_number(MAX_UNITS)), 1), 10)


def stop_on_failure() -> bool:
    """Whether a unit that cannot act stops the job (otherwise it goes on without the unit, with a warning)."""
    return _value(ON_FAILURE) != CONTINUE


def extra_folders() -> tuple[Path, ...]:
    """The user's own model folders: one per line, or separated as in PATH."""
    text = str(_value(EXTRA_FOLDERS) or "")
    parts = [part.strip().strip('"') for line in text.splitlines() for part in line.split(os.pathsep)]
    return tuple(Path(part).expanduser() for part in parts if part)


def store_bytes() -> int:
    """Size cap of the reference store in bytes; 0 where it is off."""
    return max(int(_number(STORE_MB) * MEGABYTE), 0)


def store_folder(data_folder: Path) -> Path:
    """The folder of the reference store: the user's, or one in the host's data folder."""
    text = str(_value(STORE_FOLDER) or "").strip().strip('"')
    return Path(text).expanduser() if text else data_folder / "ipadapter-references"


def inline_references() -> bool:
    """Whether the page sends pictures themselves rather than ids of the store."""
    return bool(_value(INLINE_REFERENCES))


def cache_bytes() -> int:
    """Cap of the cache of encoded references in bytes; 0 where it is off."""
    return max(int(_number(CACHE_MB) * MEGABYTE), 0)


def _value(key: str) -> Any:
    return shared.opts.data.get(key, DEFAULTS[key])


def _number(key: str) -> float:
    value = _value(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return float(DEFAULTS[key])
