"""Settings: labels, defaults, values and the file they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
from modules import errors


class OptionInfo:
    """One setting: default, label, component, section and how it appears in the infotext."""

    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None,
                 refresh=None, comment_before="", comment_after="", infotext=None, restrict_api=False,
                 category_id=None):
        self.default = default
        self.label = label
        self.component = component
        self.component_args = component_args
        self.onchange = onchange
        self.section = section
        self.category_id = category_id
        self.refresh = refresh
        self.comment_before = comment_before
        self.comment_after = comment_after
        self.infotext = infotext
        self.restrict_api = restrict_api
        self.do_not_save = False

    def link(self, label: str, url: str):
        """Add a link before the setting's comment."""
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def info(self, info: str):
        """Add a remark after the label."""
        self.comment_after += f"<span class='info'>({info})</span>"
        return self

    def html(self, html: str):
        """Add raw HTML after the label."""
        self.comment_after += html
        return self

    def needs_restart(self):
        """Say that the setting takes effect after a restart."""
        return self.info("requires restart")

    def needs_reload_ui(self):
        """Say that the setting takes effect after Reload UI."""
        return self.info("requires Reload UI")


class OptionHTML(OptionInfo):
    """A text between settings."""

    def __init__(self, text: str):
        super().__init__(str(text).strip(), label="", component=gr.HTML)
        self.do_not_save = True


def options_section(section_identifier, options_dict):
    """Give every setting of the dict its section (and category, when there are three parts)."""
    for info in options_dict.values():
        info.section = tuple(section_identifier[:2])
        if len(section_identifier) == 3:
            info.category_id = section_identifier[2]
    return options_dict


class Options:
    """The settings' values as attributes; a value that was never set is its default."""

    _own = ("data", "data_labels")

    def __init__(self, data_labels: dict[str, OptionInfo]):
        super().__setattr__("data_labels", data_labels)
        super().__setattr__("data", {k: v.default for k, v in data_labels.items() if not v.do_not_save})

    def __setattr__(self, key, value):
        if key not in self._own and (key in self.data or key in self.data_labels):
            self.data[key] = value
        else:
            super().__setattr__(key, value)

    def __getattr__(self, item):
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        raise AttributeError(item)

    def set(self, key, value, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Set one value and call its onchange; False when nothing changed. Raises: KeyError for an unknown key."""
        if self.data.get(key) == value:
            return False
        info = self.data_labels[key]
        if info.do_not_save or (is_api and info.restrict_api):
            return False
        before = self.data.get(key)
        self.data[key] = value
        if run_callbacks and info.onchange is not None:
            try:
                info.onchange()
            except Exception as error:
                errors.display(error, f"changing setting {key} to {value}")
                self.data[key] = before
                return False
        return True

    def get_default(self, key):
        """The default of a setting, or None."""
        info = self.data_labels.get(key)
        return None if info is None else info.default

    def add_option(self, key: str, info: OptionInfo) -> None:
        """Register a setting; a value that was loaded before stays."""
        self.data_labels[key] = info
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def cast_value(self, key, value):
        """`value` in the type of the setting's default (infotext gives strings)."""
        default = self.get_default(key)
        if value is None or default is None:
            return None
        if isinstance(default, bool) and value == "False":
            return False
        return type(default)(value)

    def save(self, filename: str) -> None:
        """Write the values."""
        text = json.dumps(self.data, indent=4, ensure_ascii=False)
        Path(filename).write_text(text, encoding="utf-8")

    def load(self, filename: str) -> None:
        """Read the values; keys that nobody registered are kept, as the host does."""
        path = Path(filename)
        if path.is_file():
            self.data.update(json.loads(path.read_text(encoding="utf-8")))
