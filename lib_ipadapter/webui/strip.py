"""The HTML of a unit's reference strip, of the encoder's preview and of the page's message lines.

`panel` takes the empty forms, `events` redraws them. Every text from outside is escaped; the classes are those that
`javascript/ipadapter.js` listens to and `style.css` draws.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from ..library.errors import IPAdapterError
from ..units.images import ImageStore, decode_reference, open_picture, thumbnail_data_uri

THUMBNAIL_SIDE = 192
REMOVE_SYMBOL = "&times;"
SHORT_ID = len("sha256:") + 12


@dataclass(frozen=True)
class Tile:
    """One reference as the strip shows it: a thumbnail, or the sentence that says why there is none."""

    title: str
    source: str = ""
    problem: str = ""


def tile(reference: str, number: int, store: ImageStore) -> Tile:
    """Read one reference (an id of the store or a data URI) into what the strip shows of it."""
    try:
        image = open_picture(decode_reference(reference, store), f"Reference {number}")
    except IPAdapterError as error:
        return Tile(reference[:SHORT_ID] if reference.startswith("sha256:") else "", problem=str(error))
    title = f"Reference {number}, {image.width} x {image.height}"
    return Tile(title, thumbnail_data_uri(image, THUMBNAIL_SIDE))


def strip_html(unit: int, tiles: Sequence[Tile]) -> str:
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
        f'<div class="ipadapter-strip" role="group" aria-label="References of unit {unit}">'
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
        f'<li class="ipadapter-tile">{face}<button type="button" class="ipadapter-remove" data-index="{index}" '
        f'aria-label="Remove reference {number}" title="Remove">{REMOVE_SYMBOL}</button></li>'
    )


def preview_html(squares: Sequence[Image.Image]) -> str:
    """The squares that the encoder gets, pixel for pixel (PNG), side by side; nothing where there are none."""
    if not squares:
        return ""
    pictures = "".join(
        f'<img src="{_png_data_uri(square)}" alt="Encoder input {number} of {len(squares)}" '
        f'title="{square.width} x {square.height}">'
        for number, square in enumerate(squares, 1)
    )
    return (
        '<figure class="ipadapter-squares"><figcaption>What the encoder sees</figcaption>'
        f"<div>{pictures}</div></figure>"
    )


def message_line(sentence: str, *, error: bool = True) -> str:
    """A line that screen readers announce; an error is drawn as one. The element is there even when it is empty."""
    kind = "ipadapter-error" if error else "ipadapter-note"
    return f'<p role="status" class="{kind}">{escape(sentence)}</p>'


def _png_data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
