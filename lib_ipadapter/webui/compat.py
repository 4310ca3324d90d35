"""What differs between the WebUIs' gradio versions (3.41 and 4.40), found by feature; the page's modules ask here.

Also the two widgets that the hosts add to gradio. Imported only inside a WebUI.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from modules.ui_components import InputAccordion, ToolButton

Component = TypeVar("Component")


@dataclass(frozen=True)
class UploadedFile:
    """A file that the browser sent: its name there, and where gradio put its bytes."""

    name: str
    path: Path


def accordion(label: str, elem_id: str) -> Any:
    """The host's accordion with a switch, closed and off; a class on gradio 3 hosts, a function on Forge."""
    return InputAccordion(False, label=label, elem_id=elem_id)


def tool_button(symbol: str, elem_id: str, tooltip: str) -> Any:
    """The host's small square button."""
    return with_tooltip(ToolButton(value=symbol, elem_id=elem_id), tooltip)


def keep_out_of_ui_config(component: Component) -> Component:
    """Keep the host from freezing the component's default, range and choices in `ui-config.json`, where they are
    keyed by label alone and would outlive a later version's.
    """
    vars(component)["do_not_save_to_config"] = True
    return component


def with_tooltip(component: Component, text: str) -> Component:
    """Give the component the tooltip that the hosts write into the page's configuration."""
    vars(component)["webui_tooltip"] = text
    return component


def uploaded_files(value: Any) -> list[UploadedFile]:
    """The files of a `gr.File`'s value: temporary-file objects on gradio 3, paths on gradio 4; one or several."""
    if value is None:
        return []
    items: Iterable[Any] = value if isinstance(value, (list, tuple)) else [value]
    files: list[UploadedFile] = []
    for item in items:
        path = Path(str(getattr(item, "name", item)))
        files.append(UploadedFile(Path(str(getattr(item, "orig_name", path))).name, path))
    return files
