"""Small pieces of the page."""

from __future__ import annotations

import html

from modules.ui_components import ToolButton


def plaintext_to_html(text: str, classname: str | None = None) -> str:
    """Escaped text as a paragraph."""
    content = "<br>\n".join(html.escape(line) for line in text.split("\n"))
    return f"<p class='{classname}'>{content}</p>" if classname else f"<p>{content}</p>"


def create_refresh_button(refresh_component, refresh_method, refreshed_args, elem_id):
    """A button that reads a list again and puts it into a component."""
    import gradio as gr

    components = refresh_component if isinstance(refresh_component, list) else [refresh_component]

    def refresh():
        refresh_method()
        args = refreshed_args() if callable(refreshed_args) else refreshed_args
        updates = [gr.update(**(args or {})) for _ in components]
        return updates if len(updates) > 1 else updates[0]

    button = ToolButton(value="\U0001f504", elem_id=elem_id)
    button.click(fn=refresh, inputs=[], outputs=components)
    return button
