"""What a reference looks like to a face adapter: the picture with its faces, and the aligned crop that goes in.

`page` asks for it, `face_html` draws it. Analysing takes a second, and more the first time, so a drawing may ask for
what is known already and leave the rest to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor

from ..encoders.faces import Face
from ..library.errors import BadImageError, NoFaceError
from ..library.face_packs import FacePack
from ..session.cache import ResultCache
from ..session.faces import FACE_BYTES, FacePool, chosen_face, left_to_right
from ..session.features import Reference
from ..units.face_choice import FaceChoice
from ..units.images import ImageStore, decode_reference, digest, thumbnail_data_uri
from .looks import KEPT_BYTES, content_of, png_data_uri

PICTURE_SIDE = 512
DRAWING_SECONDS = 1.5
"""A drawing starts no analysis after this, not counting the one that took longest: an engine is opened by the first
that needs it, which takes seconds. The page's script asks again for the rest.
"""


class AskedPicture(NamedTuple):
    """A reference of a unit, what it is called on the page, and which of its faces counts."""

    reference: str
    name: str
    choice: FaceChoice


class FoundFaces(NamedTuple):
    """A picture's faces, left to right, in its own pixels; `source` is a JPEG of at most `PICTURE_SIDE` a side.

    `problem` is the sentence that says that there is none and calls the picture `name`.
    """

    source: str
    size: tuple[int, int]
    faces: tuple[Face, ...]
    name: str = ""
    problem: str = ""


class ReadFace(NamedTuple):
    """The face that counts: aligned, as a PNG data URI; what may make it a poor reference; its raw embedding."""

    crop: str
    warnings: tuple[str, ...]
    embedding: Tensor


class FacePicture(NamedTuple):
    """What is shown of one reference: what is known of it, and what is wrong with it.

    `chosen` is the place of the face that counts in `found.faces`, -1 where none does.
    """

    reference: str
    name: str
    found: FoundFaces | None = None
    chosen: int = -1
    read: ReadFace | None = None
    problem: str = ""

    @property
    def pending(self) -> bool:
        """Whether there is something left to analyse."""
        return self.read is None and not self.problem


class FaceLooks:
    """Analysed references, kept by content, least recently seen out first. One for the process, made by `process`."""

    def __init__(self, pool: Callable[[], AbstractContextManager[FacePool]]) -> None:
        self._pool = pool
        self._cache = ResultCache(KEPT_BYTES)

    def pictures(
        self, pack: FacePack, asked: Sequence[AskedPicture], store: ImageStore, *, analyse: bool
    ) -> list[FacePicture]:
        """These references; with `analyse` at least one that is new is looked at, and as many as the time allows.

        Raises: IPAdapterError for what is wrong with the models; what is wrong with a picture is its problem.
        """
        seen = [self._known(pack, one) for one in asked]
        if not analyse or not any(picture.pending for picture in seen):
            return seen
        with self._pool() as pool:
            spent = longest = 0.0
            for place, (one, picture) in enumerate(zip(asked, seen, strict=True)):
                if not picture.pending:
                    continue
                if spent - longest >= DRAWING_SECONDS:
                    break
                began = time.monotonic()
                seen[place] = self._analysed(pool, pack, one, store)
                took = time.monotonic() - began
                spent, longest = spent + took, max(longest, took)
        return seen

    def _known(self, pack: FacePack, asked: AskedPicture) -> FacePicture:
        """The reference as far as it was analysed before."""
        found = self._cache.get(_key(pack, asked), FoundFaces)
        if found is None:
            return FacePicture(asked.reference, asked.name)
        read = self._cache.get((*_key(pack, asked), str(asked.choice)), ReadFace)
        return _with_choice(asked, found)._replace(read=read)

    def _analysed(self, pool: FacePool, pack: FacePack, asked: AskedPicture, store: ImageStore) -> FacePicture:
        try:
            data = decode_reference(asked.reference, store)
            reference = Reference(asked.name, digest(data), data)
            found = self._found(pool, pack, asked, reference)
        except BadImageError as error:
            return FacePicture(asked.reference, asked.name, problem=str(error))
        seen = _with_choice(asked, found)
        if seen.problem:
            return seen
        reading = pool.read(pack, reference, asked.choice)
        warnings = tuple(warning.removeprefix(f"{asked.name}: ") for warning in reading.warnings)
        read = ReadFace(png_data_uri(reading.crop), warnings, reading.embedding)
        self._cache.put((*_key(pack, asked), str(asked.choice)), read, len(read.crop) + read.embedding.nbytes)
        return seen._replace(read=read)

    def _found(self, pool: FacePool, pack: FacePack, asked: AskedPicture, reference: Reference) -> FoundFaces:
        def find() -> tuple[FoundFaces, int]:
            picture = reference.picture()
            source = thumbnail_data_uri(picture, PICTURE_SIDE)
            try:
                faces = left_to_right(pool.faces(pack, reference, max(1, asked.choice.index)))
            except NoFaceError as error:
                return FoundFaces(source, picture.size, (), asked.name, str(error)), len(source)
            return FoundFaces(source, picture.size, faces), len(source) + FACE_BYTES * len(faces)

        return self._cache.get_or_make(_key(pack, asked), FoundFaces, find)


def _with_choice(asked: AskedPicture, found: FoundFaces) -> FacePicture:
    """The picture with its face that counts, or with the sentence that says why there is none."""
    shown = FacePicture(asked.reference, asked.name, found)
    if not found.faces:
        # Its place, and so its name, may have changed since.
        return shown._replace(problem=found.problem.replace(found.name, asked.name, 1))
    by_area = sorted(found.faces, key=lambda face: face.area, reverse=True)
    try:
        face = chosen_face(by_area, asked.choice, found.size, asked.name)
    except NoFaceError as error:
        return shown._replace(problem=str(error))
    return shown._replace(chosen=found.faces.index(face))


def _key(pack: FacePack, asked: AskedPicture) -> tuple[object, ...]:
    """What the faces that are found depend on: of a choice, how many it needs."""
    return content_of(asked.reference), pack.fingerprint, asked.choice.index
