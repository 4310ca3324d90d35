"""What the page asks of the rest: the store, the files on disk, the line about what a unit will use, the preview."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from ..core.identity_fit import fit_to_unet
from ..core.layers import find_cross_attention
from ..encoders.squares import Framing
from ..library.checkpoints import checkpoint_base
from ..library.companions import published_companions
from ..library.errors import IPAdapterError
from ..library.spec import AdapterSpec, base_title
from ..session.advice import Advice, instantid_advice
from ..session.faces import misfits
from ..session.failures import as_named
from ..session.identity_files import NONE, Fit
from ..session.models import Choice
from ..session.planning import base_of
from ..session.preferences import INSTANTID
from ..session.prepare import choice_view
from ..units.face_choice import FaceChoice
from ..units.images import ImageStore
from . import settings
from .face_html import FacePreview
from .face_looks import AskedPicture
from .identity_part import Photo
from .keypoint_looks import NO_MAP, KeypointMap, MapLayout, map_of
from .looks import Looks
from .process import face_looks, image_store, looks, services
from .version import installed_notice

USUAL_SIDE = 224
FACE_LICENCE = "FaceID and the face models are for non-commercial research."


class PageServices:
    """`panel.Services` for the running WebUI; everything is looked up when asked, nothing while the page is built."""

    def store(self) -> ImageStore:
        return image_store()

    def looks(self) -> Looks:
        return looks()

    def inline_references(self) -> bool:
        return settings.inline_references() or services().host.has_workers()

    def adapter_names(self) -> list[tuple[str, str]]:
        """(name, label) of the adapters for the loaded checkpoint, all supported ones while none is loaded."""
        return services().models.adapter_names(loaded_base())

    def refresh_models(self) -> None:
        services().models.refresh()

    def explain(self, adapter: str, intent: str, identity_net: str) -> list[str]:
        """Which adapter a unit will use and what feeds it; for faces, the licence and what there is to say of the pack;
        for InstantID, its other half.

        Raises IPAdapterError, which the page shows as such: what is missing and where it was searched.
        """
        base = loaded_base()
        if not base:
            return ["No SD1.5, SD2 or SDXL checkpoint is loaded yet; the adapter is chosen when one is."]
        choice = services().models.choose(adapter, intent, [base])
        more = [FACE_LICENCE, choice.pack.note] if choice.pack is not None else []
        lines = [f"{base_title(base)}: {described(choice)}", *filter(None, more)]
        if choice.spec.kind == INSTANTID and identity_net.strip().lower() != NONE:
            net = services().models.identity_net(identity_net, choice, _loaded_fit())
            lines.insert(1, f"IdentityNet: {net.name}")
        return lines

    def advice(self) -> Advice:
        return instantid_advice(loaded_base())

    def controlnet_names(self) -> list[str]:
        return services().models.controlnet_names()

    def is_instantid(self, adapter: str, intent: str) -> bool:
        """Whether the adapter that a unit will use is InstantID's, or the one that it asks for would be."""
        try:
            return services().models.choose(adapter, intent, [loaded_base()]).spec.kind == INSTANTID
        except IPAdapterError:
            return intent == INSTANTID

    def knows_identity(self, adapter: str, intent: str) -> bool:
        return services().models.knows_identity(adapter, intent, [loaded_base()])

    def faces(
        self, references: Sequence[tuple[str, str, FaceChoice]], adapter: str, intent: str, *, analyse: bool
    ) -> FacePreview:
        """These references as the unit's face adapter sees them; empty while `explain` says what is missing.

        Raises: IPAdapterError for what is wrong with the face models.
        """
        try:
            choice = services().models.choose(adapter, intent, [loaded_base()])
        except IPAdapterError:
            return FacePreview()
        if choice.pack is None:
            return FacePreview()
        asked = [AskedPicture(*reference) for reference in references]
        try:
            pictures = face_looks().pictures(choice.pack, asked, self.store(), analyse=analyse)
        except Exception as error:
            # Whatever a face model does, the strip is drawn.
            raise as_named(error, "Looking for faces") from None
        read = [(picture.name, picture.read.embedding) for picture in pictures if picture.read is not None]
        notes = misfits(torch.stack([row for _, row in read]), [name for name, _ in read]) if len(read) > 1 else []
        return FacePreview(pictures, choice.encoder is not None, notes)

    def keypoint_map(
        self, photo: Photo, adapter: str, intent: str, layout: MapLayout, *, analyse: bool
    ) -> KeypointMap:
        """The map of a photo's chosen face, of all its faces where none is chosen; empty while `explain` says what is
        missing.

        Raises: IPAdapterError.
        """
        try:
            choice = services().models.choose(adapter, intent, [loaded_base()])
        except IPAdapterError:
            return NO_MAP
        if choice.pack is None:
            return NO_MAP
        try:
            asked = AskedPicture(photo[0], photo[1], photo[2] or FaceChoice())
            seen = face_looks().pictures(choice.pack, [asked], self.store(), analyse=analyse)
            return map_of(seen[0], layout, everybody=photo[2] is None)
        except Exception as error:
            raise as_named(error, "Drawing the keypoints") from None

    def preview(
        self, references: Sequence[str], crop: str, adapter: str, intent: str
    ) -> list[tuple[Image.Image, ...]]:
        """Each reference's squares as its encoder gets them. Raises IPAdapterError."""
        store, side = self.store(), self._side(adapter, intent, crop)
        framing = cast("Framing", crop)
        return [
            looks().squares(value, f"Reference {number}", store, side, framing)
            for number, value in enumerate(references, start=1)
        ]

    def _side(self, adapter: str, intent: str, crop: str) -> int:
        """The side of the square that is encoded; the usual one while `explain` still says what is missing."""
        try:
            view = choice_view(services().models.choose(adapter, intent, [loaded_base()]), crop)
        except IPAdapterError:
            return USUAL_SIDE
        return view.side if view is not None else USUAL_SIDE

    def host_notice(self) -> str:
        return services().host.too_old() or installed_notice()


def described(choice: Choice) -> str:
    """An adapter with what feeds it, how many tokens it makes, and where the LoRA of a face adapter is."""
    name, tokens = choice.name, choice.spec.tokens
    if choice.pack is None:
        return f"{name} with the encoder {choice.require_encoder().name} ({tokens} tokens per square)"
    fed = f"the face pack {choice.pack.name}" + (f" and the encoder {choice.encoder.name}" if choice.encoder else "")
    return f"{name} with {fed} ({tokens} tokens per face; {_lora_of(choice.spec)})"


def _lora_of(spec: AdapterSpec) -> str:
    """Where a face adapter's LoRA is, in words."""
    if spec.lora_rank:
        return "its LoRA is inside"
    published = published_companions(spec.kind, spec.base)
    if not published:
        return "it has no LoRA"
    return f"its LoRA is a file of its own, {' or '.join(known.name for known in published)}"


def _loaded_fit() -> Fit | None:
    """What judges an IdentityNet by the loaded UNet; None where the next job will load another one."""
    unet = services().host.loaded_unet()
    if unet is None:
        return None
    layers = find_cross_attention(unet)
    try:
        if base_of(unet, layers) != loaded_base():
            return None
    except IPAdapterError:
        return None
    return lambda spec: fit_to_unet(spec, unet, layers)


def page_services() -> PageServices:
    """The page's services; they hold nothing, so one is as good as another."""
    return PageServices()


def loaded_base() -> str:
    """The base of the checkpoint that the next job will use, or an empty string.

    The selected file's header says it before the file is loaded (Forge loads with the first job); where it does not
    (no file, an unknown layout), the loaded UNet does.
    """
    host = services().host
    selected = host.selected_checkpoint()
    base = _base_of_file(selected) if selected is not None and selected.is_file() else ""
    if base:
        return base
    unet: Any = host.loaded_unet()
    if unet is None:
        return ""
    try:
        return base_of(unet, find_cross_attention(unet))
    except IPAdapterError:
        return ""


def _base_of_file(path: Path) -> str:
    status = path.stat()
    return _base_of_content(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _base_of_content(path: Path, size: int, modified: int) -> str:
    """The base in a checkpoint's header; a file of another size or time is read again."""
    info = checkpoint_base(path)
    return info.base if info is not None else ""
