"""The HTML of a face adapter's preview: each reference with its faces, and beside it the aligned crop that goes in.

`events` draws with it. Every face is a button over the picture; `javascript/ipadapter_faces.js` writes the choice that
a click makes into the unit's field, and `style.css` draws. Every text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from ..encoders.faces import Face
from ..session.faces import CROP_SIDE
from ..units.face_choice import FaceChoice
from .face_looks import FacePicture, FoundFaces
from .strip import message_line, removal_key

MAX_SHOWN = 100
"""Faces of one picture that get a button: the largest ones, and the chosen one."""


class FacePreview(NamedTuple):
    """A unit's references as its face adapter sees them; `with_clip` when CLIP sees the crops too.

    `notes` are about the pictures together.
    """

    pictures: Sequence[FacePicture] = ()
    with_clip: bool = False
    notes: Sequence[str] = ()

    @property
    def pending(self) -> int:
        """How many pictures are still to be analysed."""
        return sum(picture.pending for picture in self.pictures)


def face_preview_html(preview: FacePreview) -> str:
    """The preview; nothing where there are no references."""
    figures = "".join(_figure(picture, preview.with_clip) for picture in preview.pictures)
    notes = "".join(message_line(note, error=False) for note in preview.notes)
    return (f'<div class="ipadapter-face-list">{figures}</div>' if figures else "") + notes


def _figure(picture: FacePicture, with_clip: bool) -> str:
    warnings = picture.read.warnings if picture.read is not None else ()
    lines = [message_line(warning, error=False) for warning in warnings]
    if picture.problem:
        lines.append(message_line(picture.problem))
    if picture.pending:
        lines.append(message_line("Looking for faces…" if picture.found is None else "Aligning the face…", error=False))
    shown = _picture(picture, picture.found) if picture.found is not None else ""
    crop = _crop(picture.name, picture.read.crop, with_clip) if picture.read is not None else ""
    return (
        f'<figure class="ipadapter-face-figure"><figcaption>{escape(_caption(picture))}</figcaption>'
        f'<div class="ipadapter-face-pair">{shown}{crop}</div>{"".join(lines)}</figure>'
    )


def _caption(picture: FacePicture) -> str:
    """What the picture is called, and which of several faces counts."""
    name = picture.name[:1].upper() + picture.name[1:]
    count = len(picture.found.faces) if picture.found is not None else 0
    if count < 2:
        return name
    return f"{name}, {count} faces" + (f", number {picture.chosen + 1} counts" if picture.chosen >= 0 else "")


def _picture(picture: FacePicture, found: FoundFaces) -> str:
    """The picture and over it a button for each face; larger faces lie below smaller ones."""
    width, height = found.size
    by_area = sorted(range(len(found.faces)), key=lambda place: -found.faces[place].area)
    shown = by_area[:MAX_SHOWN]
    if picture.chosen >= 0 and picture.chosen not in shown:
        shown.append(picture.chosen)
    shown.sort()
    layers = {place: layer for layer, place in enumerate(by_area, 1)}
    buttons = "".join(_button(found, place, layers[place], chosen=place == picture.chosen) for place in shown)
    points = "".join(_points(found.faces[place], found.size, chosen=place == picture.chosen) for place in shown)
    more = len(found.faces) - len(shown)
    rest = f'<span class="ipadapter-face-more">and {more} more</span>' if more else ""
    return (
        f'<div class="ipadapter-face-picture" data-key="{escape(removal_key(picture.reference))}" role="group" '
        f'aria-label="Faces in {escape(picture.name)}" title="Click the face that counts" '
        f'style="--shape:{width / height:.4f}"><img src="{escape(found.source)}" alt="{escape(picture.name)}" '
        f'draggable="false"><svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{points}'
        f"</svg>{buttons}{rest}</div>"
    )


def _button(found: FoundFaces, place: int, layer: int, *, chosen: bool) -> str:
    face = found.faces[place]
    x1, y1, x2, y2 = _fractions(face, found.size)
    label = f"Face {place + 1} of {len(found.faces)}, score {face.score:.2f}"
    kind = "ipadapter-face-box" + (" ipadapter-face-chosen" if chosen else "")
    return (
        f'<button type="button" class="{kind}" aria-label="{label}" aria-pressed="{str(chosen).lower()}" '
        f'title="{label}" data-point="{_point(found, place)}" style="left:{x1:.2%};top:{y1:.2%};'
        f'width:{x2 - x1:.2%};height:{y2 - y1:.2%};z-index:{min(layer, MAX_SHOWN)}">'
        f"<span>{place + 1}<i> · {face.score:.2f}</i></span></button>"
    )


def _point(found: FoundFaces, place: int) -> str:
    """The choice of a point that means this face: its middle, or what no smaller face has of it.

    Of several boxes around a point the smallest counts (`encoders.face_choice`).
    """
    face = found.faces[place]
    x1, y1, x2, y2 = _fractions(face, found.size)
    smaller = [_fractions(other, found.size) for other in found.faces if other is not face and other.area <= face.area]
    steps = sorted(range(1, 10), key=lambda step: abs(step - 5))
    places = [(x1 + (x2 - x1) * across / 10, y1 + (y2 - y1) * down / 10) for across in steps for down in steps]
    free = (at for at in places if not any(a <= at[0] <= c and b <= at[1] <= d for a, b, c, d in smaller))
    return str(FaceChoice("point", point=next(free, places[0])))


def _fractions(face: Face, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box as fractions of the picture, cut to it."""
    width, height = size
    x1, y1, x2, y2 = face.box
    return _cut(x1 / width), _cut(y1 / height), _cut(x2 / width), _cut(y2 / height)


def _cut(part: float) -> float:
    return min(max(part, 0.0), 1.0)


def _points(face: Face, size: tuple[int, int], *, chosen: bool) -> str:
    radius = max(face.width / 40, max(size) / 400)
    kind = "ipadapter-face-point" + (" ipadapter-face-chosen" if chosen else "")
    return "".join(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>' for x, y in face.keypoints)


def _crop(name: str, source: str, with_clip: bool) -> str:
    seen = "what goes in, and what CLIP sees" if with_clip else "what goes in"
    return (
        f'<img class="ipadapter-face-crop" src="{escape(source)}" alt="Aligned face of {escape(name)}: {seen}" '
        f'title="Aligned face, {CROP_SIDE} x {CROP_SIDE}: {seen}" tabindex="0">'
    )
