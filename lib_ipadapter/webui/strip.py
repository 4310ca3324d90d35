"""The HTML of a unit's reference strip, of the encoder's preview and of the page's message lines.

`panel` takes the empty forms, `events` redraws them. Every text from outside is escaped; the classes are those that
`javascript/ipadapter.js` listens to and `style.css` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image

from ..library.errors import IPAdapterError
from ..units.images import ImageStore
from .looks import Looks, Thumbnail, png_data_uri

REMOVE_SYMBOL = "&times;"
SHORT_ID = len("sha256:") + 12
KEY_CHARACTERS = 24


class Tile(NamedTuple):
    """One reference as the strip shows it: a thumbnail, or the sentence that says why there is none.

    `key` is what the page's script removes it by: the strip may be older than the references.
    """

    key: str
    title: str
    source: str = ""
    problem: str = ""


def tile(reference: str, number: int, store: ImageStore, looks: Looks) -> Tile:
    """Read one reference (an id of the store or a data URI) into what the strip shows of it."""
    try:
        seen = looks.thumbnail(reference, f"Reference {number}", store)
    except IPAdapterError as error:
        title = reference[:SHORT_ID] if reference.startswith("sha256:") else ""
        return Tile(removal_key(reference), title, problem=str(error))
    return Tile(removal_key(reference), f"Reference {number}, {seen.width} x {seen.height}", seen.source)


def removal_key(reference: str) -> str:
    """Tells references of one unit apart without repeating a picture; `ipadapter.js` computes the same."""
    return f"{len(reference)}:{reference[-KEY_CHARACTERS:]}"


class Drawing(NamedTuple):
    """What the page's script reads from a drawing: its number, by which it knows that the answer has arrived, whether
    the fields of a face, and those of InstantID, mean something to the unit, and how many pictures are still to be
    analysed.
    """

    turn: str = ""
    faces: bool = False
    pending: int = 0
    net: bool = False


NO_DRAWING = Drawing()
"""Of a strip that nobody waits for."""


def strip_html(unit: int, tiles: Sequence[Tile], drawing: Drawing = NO_DRAWING) -> str:
    """The strip of a unit: thumbnails with a remove button each, and the tile that adds pictures."""
    items = "".join(_tile_html(index, one) for index, one in enumerate(tiles))
    label = "Drop, paste or choose more" if tiles else "Drop, paste or choose reference pictures"
    clear = (
        f'<button type="button" class="ipadapter-clear" aria-label="Remove all references of unit {unit}">Clear'
        "</button>"
        if len(tiles) > 1
        else ""
    )
    problems = "".join(message_line(one.problem) for one in tiles if one.problem)
    return (
        f'<div class="ipadapter-strip" role="group" aria-label="References of unit {unit}" '
        f'data-turn="{escape(drawing.turn)}" data-faces="{str(drawing.faces).lower()}" '
        f'data-pending="{drawing.pending}" data-net="{str(drawing.net).lower()}">'
        f'<ul class="ipadapter-tiles">{items}</ul>'
        f'<button type="button" class="ipadapter-add" aria-label="Add reference pictures to unit {unit}">'
        f'<span class="ipadapter-plus" aria-hidden="true">+</span><span>{label}</span></button>{clear}</div>{problems}'
    )


def _tile_html(index: int, one: Tile) -> str:
    number = index + 1
    if one.source:
        face = f'<img src="{escape(one.source)}" alt="{escape(one.title)}" title="{escape(one.title)}">'
    else:
        face = f'<span class="ipadapter-missing" title="{escape(one.problem)}">not found</span>'
    return (
        f'<li class="ipadapter-tile">{face}<button type="button" class="ipadapter-remove" data-key="{escape(one.key)}" '
        f'aria-label="Remove reference {number}" title="Remove">{REMOVE_SYMBOL}</button></li>'
    )


def pose_html(photo: Thumbnail) -> str:
    """The pose photo, small, as InstantID's preview shows it."""
    return (
        f'<figure class="ipadapter-pose-photo"><figcaption>Pose photo, {photo.width} x {photo.height}</figcaption>'
        f'<img src="{escape(photo.source)}" alt="Pose photo"></figure>'
    )


def preview_html(references: Sequence[Sequence[Image.Image]]) -> str:
    """The squares that the encoder gets of each reference, pixel for pixel (PNG); nothing where there are none."""
    if not references:
        return ""
    groups = "".join(
        f'<span class="ipadapter-group">{_group_html(number, squares)}</span>'
        for number, squares in enumerate(references, 1)
    )
    return (
        f'<figure class="ipadapter-squares"><figcaption>What the encoder sees</figcaption><div>{groups}</div></figure>'
    )


def _group_html(number: int, squares: Sequence[Image.Image]) -> str:
    titles = [
        f"Reference {number}" + (f", square {index} of {len(squares)}" if len(squares) > 1 else "")
        for index in range(1, len(squares) + 1)
    ]
    return "".join(
        f'<img src="{png_data_uri(square)}" alt="{title}, as the encoder sees it" title="{title}, {square.width} x '
        f'{square.height}" tabindex="0">'
        for title, square in zip(titles, squares, strict=True)
    )


def message_line(sentence: str, *, error: bool = True) -> str:
    """A line that screen readers announce; an error is drawn as one. The element is there even when it is empty."""
    kind = "ipadapter-error" if error else "ipadapter-note"
    return f'<p role="status" class="{kind}">{escape(sentence)}</p>'
