"""What the page takes from the hosts beside gradio: two widgets, and attributes that they read from components.

`panel` builds with these. What differs between gradio 3.41 and 4.40 is kept out of the page instead of being bridged:
choices are plain strings (3.41's drop-downs know no labels), values that are not choices are allowed (4.40 drops them
otherwise), pictures come through a text box (3.41 loses an upload while another event answers), and hidden components
are hidden by a class (those that are not visible are not in the page).
"""

from __future__ import annotations

from typing import Any, TypeVar

from modules.ui_components import InputAccordion, ToolButton

Component = TypeVar("Component")


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
