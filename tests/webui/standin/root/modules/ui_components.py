"""Components of the host's own; `InputAccordion` is a class on the gradio 3 hosts and a function on Forge."""

from __future__ import annotations

from functools import wraps

import gradio as gr

from tests.webui.standin import launching


class FormComponent:
    """Marks what sits in a form."""

    def get_expected_parent(self):
        """Gradio 3 groups form components."""
        return gr.components.Form


class ToolButton(gr.Button):
    """A small button with a symbol."""

    # Gradio 4 tells the browser only of what is in the constructor's signature.
    @wraps(gr.Button.__init__)
    def __init__(self, value="", *args, elem_classes=(), **kwargs):
        super().__init__(value, *args, elem_classes=["tool", *elem_classes], **kwargs)

    def get_block_name(self):
        """Drawn as a button."""
        return "button"


class FormRow(gr.Row):
    """A row in a form."""

    def get_block_name(self):
        """Drawn as a row."""
        return "row"


class FormHTML(gr.HTML):
    """HTML in a form."""

    def get_block_name(self):
        """Drawn as HTML."""
        return "html"


class _InputAccordion(gr.Checkbox):
    """An accordion that is an input: a hidden check box, True while it is open (ticked)."""

    webui_do_not_create_gradio_pyi_thank_you = True
    global_index = 0

    @wraps(gr.Checkbox.__init__)
    def __init__(self, value=None, setup: bool = False, **kwargs):
        # Without `setup` when gradio 4 makes a copy of the check box to update it.
        if not setup:
            super().__init__(value=value, **kwargs)
            return
        self.accordion_id = kwargs.get("elem_id")
        if self.accordion_id is None:
            self.accordion_id = f"input-accordion-{_InputAccordion.global_index}"
            _InputAccordion.global_index += 1
        super().__init__(value=value, **(kwargs | {"elem_id": f"{self.accordion_id}-checkbox", "visible": False}))
        js = f"function(checked){{ inputAccordionChecked('{self.accordion_id}', checked); }}"
        self.change(fn=None, _js=js, inputs=[self])
        label = kwargs.get("label", "Accordion")
        self.accordion = gr.Accordion(elem_id=self.accordion_id, label=label, elem_classes=["input-accordion"],
                                      open=bool(value))

    def extra(self):
        """A column inside the accordion's label."""
        return gr.Column(elem_id=self.accordion_id + "-extra", elem_classes=["input-accordion-extra"], min_width=0)

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.accordion.__exit__(exc_type, exc_val, exc_tb)

    def get_block_name(self):
        """Drawn as a check box."""
        return "checkbox"


if launching.is_forge():

    def InputAccordion(value=None, **kwargs):  # noqa: N802 (the host's own name)
        """Forge's form: a function."""
        return _InputAccordion(value=value, setup=True, **kwargs)
else:

    class InputAccordion(_InputAccordion):
        """A1111's form: a class."""

        def __init__(self, value, **kwargs):
            super().__init__(value=value, setup=True, **kwargs)
