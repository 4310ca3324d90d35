"""What the hosts change in gradio: component callbacks, and on Forge the old spellings of gradio 3."""

from __future__ import annotations

import inspect
import warnings

import gradio as gr
from modules import script_callbacks, scripts

from tests.webui.standin import launching


class GradioDeprecationWarning(DeprecationWarning):
    """An argument that gradio 4 does not know."""


def _announce(original):
    """Call the component callbacks around a constructor, for the tab that is being built."""

    def __init__(self, *args, **kwargs):  # noqa: N807
        runner, elem_id = scripts.scripts_current, kwargs.get("elem_id")
        rest = {key: value for key, value in kwargs.items() if key != "elem_id"}
        if runner is not None:
            runner.component_callback("before_component", self, elem_id, **rest)
        script_callbacks.before_component_callback(self, **kwargs)
        original(self, *args, **kwargs)
        script_callbacks.after_component_callback(self, **kwargs)
        if runner is not None:
            runner.component_callback("after_component", self, elem_id, **rest)

    return __init__


class _EventWrapper:
    """An event that accepts `_js` for `js`."""

    def __init__(self, event):
        self.event = event
        self.has_trigger = getattr(event, "has_trigger", None)
        self.event_name = getattr(event, "event_name", None)
        self.callback = getattr(event, "callback", None)
        self.real_self = getattr(event, "__self__", None)

    def __call__(self, *args, **kwargs):
        if "_js" in kwargs:
            kwargs["js"] = kwargs.pop("_js")
        return self.event(*args, **kwargs)

    @property
    def __self__(self):
        return self.real_self


def _repair(component) -> None:
    """`source=` becomes `sources=[...]`; unknown arguments are dropped with a warning; events take `_js`."""
    if not getattr(component, "EVENTS", None):
        return
    original = component.__init__
    allowed = inspect.signature(original).parameters

    def __init__(self, *args, tooltip=None, source=None, **kwargs):  # noqa: N807
        if source:
            kwargs["sources"] = [source]
        for name in [name for name in kwargs if name not in allowed]:
            warnings.warn(f"unexpected argument for {component.__name__}: {name}", GradioDeprecationWarning,
                          stacklevel=2)
            del kwargs[name]
        original(self, *args, **kwargs)
        self.webui_tooltip = tooltip
        for event in self.EVENTS:
            setattr(self, str(event), _EventWrapper(getattr(self, str(event))))

    __init__.__wrapped__ = original
    __init__.__signature__ = inspect.signature(original)
    component.__init__ = __init__
    component.update = gr.update


def _install_forge_shims() -> None:
    import gradio.component_meta

    gradio.component_meta.create_or_modify_pyi = lambda *args: None  # writes files beside the sources otherwise
    gradio.component_meta.updateable = lambda function: function
    gr.components.Component.__init__ = _announce(gr.components.Component.__init__)
    gr.blocks.BlockContext.__init__ = _announce(gr.blocks.BlockContext.__init__)
    for name in sorted(set(gr.components.__all__ + gr.layouts.__all__)):
        component = getattr(gr, name, None)
        if component is not None:
            _repair(component)
    original_then = gr.events.Dependency.__init__

    def __init__(self, *args, **kwargs):  # noqa: N807
        original_then(self, *args, **kwargs)
        plain = self.then

        def then(*xargs, _js=None, **xkwargs):
            return plain(*xargs, **(xkwargs | ({"js": _js} if _js else {})))

        self.then = then

    gr.events.Dependency.__init__ = __init__
    gr.Box = gr.Group


_done: list[bool] = []


def install() -> None:
    """Change gradio, once per process."""
    if _done:
        return
    _done.append(True)
    if launching.is_forge():
        _install_forge_shims()
    else:
        base = gr.components.IOComponent
        base.__init__ = _announce(base.__init__)
        gr.blocks.BlockContext.__init__ = _announce(gr.blocks.BlockContext.__init__)


install()
