"""What happens when something on the page is used: reading uploads, redrawing a strip, naming the adapter.

`panel` builds the components and calls `Events`' methods from their listeners. Every method asks `Services`, which
`webui.page` implements, and turns a named error into its sentence; nothing here keeps state.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from ..encoders.keypoints import Size
from ..library.errors import BadImageError
from ..session.advice import Advice
from ..units.face_choice import FaceChoice, choice_for, parse_face_choices
from ..units.fields import ADAPTER, CROP, FACE, IMAGES, INTENT
from ..units.identity_fields import FIT, IDENTITY_NET, KEYPOINTS, POSE_FACE
from ..units.images import ImageStore, decode_reference, open_picture
from ..units.store import extension
from .attempts import attempt
from .face_html import FacePreview, face_preview_html
from .identity_part import NO_PART, MapFields, Photo, identity_part
from .keypoint_looks import KeypointMap, MapLayout
from .looks import Looks
from .strip import NO_DRAWING, Drawing, message_line, preview_html, strip_html, tile

_TURN = re.compile(r"\d+(\+?)(?:@(\d{1,5})x(\d{1,5}))?")
NO_NET = "none"
MIME_TYPES = {"jpg": "jpeg", "tif": "tiff"}


class Services(Protocol):
    """What the page asks of the extension; called from events only, never while the page is built."""

    def store(self) -> ImageStore: ...

    def looks(self) -> Looks: ...

    def inline_references(self) -> bool:
        """Whether references travel as data URIs instead of the store's ids."""
        ...

    def adapter_names(self) -> Sequence[tuple[str, str]]:
        """The adapters that fit the loaded checkpoint: (name, what it is), without 'auto'."""
        ...

    def refresh_models(self) -> None:
        """Look at the model folders again."""
        ...

    def controlnet_names(self) -> Sequence[str]:
        """The ControlNets that can run as IdentityNet."""
        ...

    def is_instantid(self, adapter: str, intent: str) -> bool:
        """Whether InstantID's fields mean something to a unit."""
        ...

    def explain(self, adapter: str, intent: str, identity_net: str) -> Sequence[str]:
        """First what will be used, adapter, encoder and face pack, then what else is to be said of it.

        Raises: IPAdapterError for what is missing, which says where it was searched.
        """
        ...

    def advice(self) -> Advice:
        """What helps InstantID with the loaded checkpoint."""
        ...

    def knows_identity(self, adapter: str, intent: str) -> bool:
        """Whether the adapter that a unit will use is fed by faces, also where what feeds it is missing."""
        ...

    def faces(
        self, references: Sequence[tuple[str, str, FaceChoice]], adapter: str, intent: str, *, analyse: bool
    ) -> FacePreview:
        """These references (what it is, what it is called, which face counts) as the unit's face adapter sees them.

        Without `analyse`, those that were not looked at before are pending; with it, some may be.
        """
        ...

    def keypoint_map(
        self, photo: Photo, adapter: str, intent: str, layout: MapLayout, *, analyse: bool
    ) -> KeypointMap:
        """The map of a photo's chosen face, as `faces` sees it, laid into the picture to be made; of all its faces
        where units share them out (None)."""
        ...

    def preview(
        self, references: Sequence[str], crop: str, adapter: str, intent: str
    ) -> Sequence[Sequence[Image.Image]]:
        """The squares that the encoder will get of each of these references."""
        ...

    def host_notice(self) -> str:
        """Why the extension cannot work on this host at all, or an empty string; cheap."""
        ...


class Events:
    """The listeners of one panel. Choices arrive by their labels; `FieldSpec.parse` gives the values behind."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_upload(self, sent: str, references: str) -> tuple[str, str, str]:
        """Take a file that was dropped, pasted or chosen into the unit's references.

        `sent` is a JSON object with the file's `name` and its bytes as a data URI in `data`. Returns the emptied
        inbox, the references as JSON, and the message line; a file that is no picture leaves the references as they
        are.
        """

        def merged() -> Sequence[str]:
            known = IMAGES.parse(references)
            return IMAGES.parse(list(dict.fromkeys([*known, self._keep(*read_upload(sent))])))

        items, problem = attempt(merged, None)
        return "", references if items is None else json.dumps(items), message_line(problem)

    def _keep(self, name: str, data: bytes) -> str:
        """A picture file's reference: its id in the store, or itself where ids would not do."""
        open_picture(data, name)
        store = self._services.store()
        if self._services.inline_references() or not store.writable:
            kind = extension(data)
            return f"data:image/{MIME_TYPES.get(kind, kind)};base64,{base64.b64encode(data).decode('ascii')}"
        return store.put(data)

    def add_pose(self, sent: str, pose: str) -> tuple[str, str, str]:
        """Take a file as the unit's pose photo, in the place of the one before.

        `sent` and the answer are as `add_upload`'s.
        """
        kept, problem = attempt(lambda: json.dumps([self._keep(*read_upload(sent))]), None)
        return "", pose if kept is None else kept, message_line(problem)

    def draw(
        self,
        number: int,
        turn: str,
        references: str,
        crop: str,
        adapter: str,
        intent: str,
        face: str,
        identity_net: str = IDENTITY_NET.default,
        pose: str = "",
        keypoints: str = KEYPOINTS.default,
        pose_face: str = POSE_FACE.default,
        fit: str = FIT.default,
    ) -> tuple[str, str, str]:
        """Unit `number` drawn anew: the strip, what the adapter gets, and the line below the adapter list.

        The page's script asks for one drawing of a unit at a time, so that no answer can overtake a later one; `turn`
        is its number, which strip and preview carry back, as `read_turn` says. One that may take its time to analyse
        faces is asked for where the drawing before it says that there are pictures to be analysed.
        """
        analyse, size = read_turn(turn)
        knows, _ = attempt(lambda: self._services.knows_identity(ADAPTER.parse(adapter), INTENT.parse(intent)), False)
        pending = 0
        if knows:
            preview, pending = self.draw_faces(references, adapter, intent, face, analyse=analyse)
        else:
            preview = self.draw_preview(references, crop, adapter, intent)
        with_faces, _ = attempt(lambda: knows or INTENT.parse(intent) in ("face", "instantid"), knows)
        with_net, _ = attempt(
            lambda: self._services.is_instantid(ADAPTER.parse(adapter), INTENT.parse(intent)), False
        )
        part = NO_PART
        if with_net:
            given = MapFields(references, face, pose, keypoints, pose_face, fit)
            part = identity_part(self._services, given, adapter, intent, size, analyse=analyse)
        return (
            self.draw_strip(number, references, Drawing(turn, with_faces, pending + part.pending, with_net)),
            f'<div class="ipadapter-seen" data-turn="{escape(turn)}">{preview}{part.preview}</div>',
            self.explain(adapter, intent, identity_net) + part.advice,
        )

    def draw_strip(self, number: int, references: str, drawing: Drawing = NO_DRAWING) -> str:
        """The strip of unit `number`; a reference that is not there has a tile and a sentence that say so."""
        store, looks = self._services.store(), self._services.looks()
        items, problem = attempt(lambda: IMAGES.parse(references), ())
        html = strip_html(number, [tile(item, place, store, looks) for place, item in enumerate(items, 1)], drawing)
        return html + (message_line(problem) if problem else "")

    def draw_faces(
        self, references: str, adapter: str, intent: str, face: str, *, analyse: bool
    ) -> tuple[str, int]:
        """The references that are there, with their faces; and how many of them are still to be analysed."""

        def look() -> FacePreview:
            items, choices = IMAGES.parse(references), parse_face_choices(FACE.parse(face))
            asked = [
                (item, f"picture {place + 1}", choice_for(choices, place))
                for place, item in enumerate(items)
                if self._is_there(item)
            ]
            if not asked:
                return FacePreview()
            return self._services.faces(asked, ADAPTER.parse(adapter), INTENT.parse(intent), analyse=analyse)

        preview, problem = attempt(look, FacePreview())
        return face_preview_html(preview) + (message_line(problem) if problem else ""), preview.pending

    def draw_preview(self, references: str, crop: str, adapter: str, intent: str) -> str:
        """What the encoder sees of the references that are there; a missing one is told of by the strip."""

        def squares() -> Sequence[Sequence[Image.Image]]:
            there = [item for item in IMAGES.parse(references) if self._is_there(item)]
            choices = CROP.parse(crop), ADAPTER.parse(adapter), INTENT.parse(intent)
            return self._services.preview(there, *choices) if there else ()

        pictures, problem = attempt(squares, ())
        return preview_html(pictures) + (message_line(problem) if problem else "")

    def _is_there(self, reference: str) -> bool:
        return not reference.startswith("sha256:") or self._services.store().has(reference)

    def explain(self, adapter: str, intent: str, identity_net: str = IDENTITY_NET.default) -> str:
        """What stands below the adapter list."""

        def look() -> Sequence[str]:
            net = IDENTITY_NET.parse(identity_net)
            return self._services.explain(ADAPTER.parse(adapter), INTENT.parse(intent), net)

        lines, problem = attempt(look, [""])
        return message_line(problem) if problem else "".join(message_line(line, error=False) for line in lines)

    def list_adapters(self, *adapters: str) -> list[Any]:
        """New choices for every unit's adapter list; the script then asks for new drawings, which say what is wrong.

        A chosen adapter stays chosen even where the list does not have it: the line says what is wrong with it.
        """
        names, _ = attempt(self._services.adapter_names, ())
        choices = [ADAPTER.default, *(name for name, _ in names)]
        return [gr.update(choices=with_chosen(choices, adapter)) for adapter in adapters]

    def list_nets(self, *nets: str) -> list[Any]:
        """New choices for every unit's list of IdentityNets."""
        names, _ = attempt(self._services.controlnet_names, ())
        choices = [IDENTITY_NET.default, NO_NET, *names]
        return [gr.update(choices=with_chosen(choices, net)) for net in nets]

    def refresh(self, *adapters: str) -> list[Any]:
        """Look at the model folders again, then as `list_adapters`; the panel's message line comes first."""
        _, problem = attempt(self._services.refresh_models, None)
        return [message_line(problem), *self.list_adapters(*adapters)]

    def delete_stored(self) -> str:
        """Empty the store; returns the panel's message line."""
        count, problem = attempt(lambda: self._services.store().clear(), 0)
        done = f"{count} stored reference picture{'' if count == 1 else 's'} deleted."
        return message_line(problem or done, error=bool(problem))


def read_turn(turn: str) -> tuple[bool, Size | None]:
    """What a drawing's number says beside it: a "+", whether it may take its time, and "@1024x768", the size of the
    picture to be made, where the page knows it.
    """
    match = _TURN.fullmatch(turn)
    if match is None:
        return False, None
    size = (int(match[2]), int(match[3])) if match[2] else (0, 0)
    return bool(match[1]), size if min(size) > 0 else None


def read_upload(sent: str) -> tuple[str, bytes]:
    """Name and bytes of a file that the page's script sent. Raises: BadImageError."""
    try:
        message = json.loads(sent)
        name, data = str(message["name"]), str(message["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadImageError("The page sent an upload that cannot be read; reload the page and try again.") from error
    payload = data.partition(",")[2]
    # An empty file has an empty payload, which is for `open_picture` to tell.
    return name, decode_reference(data) if payload else b""


def with_chosen(choices: Sequence[str], chosen: str | None) -> list[str]:
    """The choices, and the chosen one at their end if it is not among them."""
    return [*choices, *([chosen] if chosen and chosen not in choices else [])]
