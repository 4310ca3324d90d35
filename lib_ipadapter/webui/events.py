"""What happens when something on the page is used: reading uploads, redrawing a strip, naming the adapter.

`panel` builds the components and calls `Events`' methods from their listeners. Every method asks `Services`, which
`webui.script` implements, and turns a named error into its sentence; nothing here keeps state.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import gradio as gr
from PIL import Image

from ..library.errors import IPAdapterError
from ..units.fields import ADAPTER, CROP, IMAGES, INTENT
from ..units.images import ImageStore, open_picture
from ..units.store import extension
from .compat import uploaded_files
from .strip import message_line, preview_html, strip_html, tile

MIME_TYPES = {"jpg": "jpeg", "tif": "tiff"}
T = TypeVar("T")


class Services(Protocol):
    """What the page asks of the extension; called from events only, never while the page is built."""

    def store(self) -> ImageStore: ...

    def inline_references(self) -> bool:
        """Whether references travel as data URIs instead of the store's ids."""
        ...

    def adapter_names(self) -> Sequence[tuple[str, str]]:
        """The adapters that fit the loaded checkpoint: (name, what it is), without 'auto'."""
        ...

    def refresh_models(self) -> None:
        """Look at the model folders again."""
        ...

    def explain(self, adapter: str, intent: str) -> str:
        """One line: which adapter and encoder will be used, or what is missing and where it was searched."""
        ...

    def preview(self, references: Sequence[str], crop: str, adapter: str, intent: str) -> Sequence[Image.Image]:
        """The squares that the encoder will get for these references."""
        ...

    def host_notice(self) -> str:
        """Why the extension cannot work on this host at all, or an empty string; cheap."""
        ...


def attempt(call: Callable[[], T], otherwise: T) -> tuple[T, str]:
    """The call's answer and no sentence, or `otherwise` and the sentence of the named error that it raised."""
    try:
        return call(), ""
    except IPAdapterError as error:
        return otherwise, str(error)


class Events:
    """The listeners of one panel. Choices arrive by their labels; `FieldSpec.parse` gives the values behind."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_uploads(self, uploaded: Any, references: str) -> tuple[None, str, str]:
        """Take what was dropped, pasted or chosen into the unit's references.

        Returns the emptied upload component, the references as JSON, and the message line. Pictures that can be read
        are added even if others cannot.
        """
        known, problem = attempt(lambda: list(IMAGES.parse(references)), [])
        problems = [problem] if problem else []
        added: list[str] = []
        for file in uploaded_files(uploaded):
            reference, problem = attempt(lambda file=file: self._keep(file.path.read_bytes(), file.name), "")
            problems += [problem] if problem else []
            added += [reference] if reference else []
        merged = list(dict.fromkeys([*known, *added]))
        _, problem = attempt(lambda: IMAGES.parse(merged), ())
        if problem:
            return None, json.dumps(known) if known else "", message_line(problem)
        return None, json.dumps(merged) if merged else "", message_line(" ".join(problems))

    def _keep(self, data: bytes, name: str) -> str:
        open_picture(data, name)
        store = self._services.store()
        if self._services.inline_references() or not store.writable:
            kind = extension(data)
            return f"data:image/{MIME_TYPES.get(kind, kind)};base64,{base64.b64encode(data).decode('ascii')}"
        return store.put(data)

    def draw_strip(self, number: int, references: str) -> str:
        """The strip of unit `number`; a reference that is not there has a tile and a sentence that say so."""
        store = self._services.store()
        items, problem = attempt(lambda: IMAGES.parse(references), ())
        html = strip_html(number, [tile(item, place, store) for place, item in enumerate(items, 1)])
        return html + (message_line(problem) if problem else "")

    def draw_preview(self, references: str, crop: str, adapter: str, intent: str) -> str:
        """What the encoder sees of the references that are there; a missing one is told of by the strip."""

        def squares() -> Sequence[Image.Image]:
            items = IMAGES.parse(references)
            store = self._services.store()
            there = [item for item in items if not item.startswith("sha256:") or store.has(item)]
            choices = CROP.parse(crop), ADAPTER.parse(adapter), INTENT.parse(intent)
            return self._services.preview(there, *choices) if there else ()

        pictures, problem = attempt(squares, ())
        return preview_html(pictures) + (message_line(problem) if problem else "")

    def explain(self, adapter: str, intent: str) -> str:
        """The line below the adapter list."""
        line, problem = attempt(lambda: self._services.explain(ADAPTER.parse(adapter), INTENT.parse(intent)), "")
        return message_line(problem or line, error=bool(problem))

    def list_adapters(self, *settings: str) -> list[Any]:
        """New choices for every unit's adapter list, then every unit's line.

        `settings` are all units' adapters, then all units' intents. A chosen adapter stays chosen even where the list
        does not have it: the line says what is wrong with it.
        """
        count = len(settings) // 2
        names, problem = attempt(self._services.adapter_names, ())
        choices = [ADAPTER.default, *(name for name, _ in names)]
        lists = [gr.update(choices=with_chosen(choices, adapter)) for adapter in settings[:count]]
        if problem:
            return lists + [message_line(problem)] * count
        pairs = zip(settings[:count], settings[count:], strict=True)
        return lists + [self.explain(adapter, intent) for adapter, intent in pairs]

    def refresh(self, *settings: str) -> list[Any]:
        """Look at the model folders again, then as `list_adapters`."""
        _, problem = attempt(self._services.refresh_models, None)
        updates = self.list_adapters(*settings)
        half = len(updates) // 2
        return updates[:half] + [message_line(problem)] * half if problem else updates

    def delete_stored(self, *references: str) -> list[str]:
        """Empty the store; returns the panel's message line, and every unit's strip drawn anew."""
        count, problem = attempt(lambda: self._services.store().clear(), 0)
        done = f"{count} stored reference picture{'' if count == 1 else 's'} deleted."
        strips = [self.draw_strip(number, items) for number, items in enumerate(references, 1)]
        return [message_line(problem or done, error=bool(problem)), *strips]


def with_chosen(choices: Sequence[str], chosen: str | None) -> list[str]:
    """The choices, and the chosen one at their end if it is not among them."""
    return [*choices, *([chosen] if chosen and chosen not in choices else [])]
