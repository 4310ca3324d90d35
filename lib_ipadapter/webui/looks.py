"""What a reference looks like on the page: its thumbnail and the squares that an encoder gets of it.

Kept by content, so that adding a picture decodes that picture and not the ones that are there already. `events` draws
with it; one `Looks` for the process, made by `process`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from PIL import Image

from ..encoders.squares import Framing, to_squares
from ..session.cache import ResultCache
from ..units.images import ImageStore, decode_reference, open_picture, thumbnail_data_uri

THUMBNAIL_SIDE = 192
KEPT_BYTES = 32 * 1024 * 1024
T = TypeVar("T")


class Thumbnail(NamedTuple):
    """A small JPEG as a data URI, and the size of the picture itself in pixels."""

    source: str
    width: int
    height: int


class Looks:
    """Thumbnails and squares of references (ids of the store, data URIs or base64), least recently seen out first."""

    def __init__(self) -> None:
        self._cache = ResultCache(KEPT_BYTES)

    def thumbnail(self, reference: str, name: str, store: ImageStore) -> Thumbnail:
        """Raises: BadImageError, which calls the picture `name`, where it is gone or cannot be read."""

        def make() -> tuple[Thumbnail, int]:
            image = open_picture(decode_reference(reference, store), name)
            made = Thumbnail(thumbnail_data_uri(image, THUMBNAIL_SIDE), image.width, image.height)
            return made, len(made.source)

        return self._kept(("thumbnail",), reference, store, Thumbnail, make)

    def squares(
        self, reference: str, name: str, store: ImageStore, side: int, framing: Framing
    ) -> tuple[Image.Image, ...]:
        """Raises: BadImageError as `thumbnail`."""

        def make() -> tuple[tuple[Image.Image, ...], int]:
            made = tuple(to_squares(open_picture(decode_reference(reference, store), name), side, framing))
            return made, 3 * side * side * len(made)

        return self._kept(("squares", side, framing), reference, store, tuple, make)

    def _kept(
        self,
        what: tuple[object, ...],
        reference: str,
        store: ImageStore,
        kind: type[T],
        make: Callable[[], tuple[T, int]],
    ) -> T:
        stored = reference.startswith("sha256:")
        if stored and not store.has(reference):
            # Deleted since: `make` says so.
            return make()[0]
        return self._cache.get_or_make((*what, content_of(reference)), kind, make)


def content_of(reference: str) -> str:
    """What stands for a reference's content: its id in the store, or the digest of its text."""
    if reference.startswith("sha256:"):
        return reference
    return hashlib.sha256(reference.encode("utf-8", "replace")).hexdigest()


def png_data_uri(image: Image.Image) -> str:
    """A picture pixel for pixel, as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
