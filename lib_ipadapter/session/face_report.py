"""Everything that is known of the faces in one picture, for programs: `webui.face_route` answers with it.

What the page shows is `webui.face_looks`'.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..encoders.face_choice import face_warnings
from ..encoders.faces import Face
from ..library.errors import NoFaceError
from ..library.face_packs import FacePack
from ..units.face_choice import FaceChoice
from .faces import FacePool, aligned, chosen_face, left_to_right, pixels_of
from .features import Reference

MAX_DETAILED = 64
"""Faces of one picture that are aligned and recognised: the largest ones, and the one that counts."""


class ReportedFace(NamedTuple):
    """One face: `crop` and `embedding` (512,), raw, where they were asked for and it is not one too many."""

    face: Face
    warnings: tuple[str, ...] = ()
    crop: Image.Image | None = None
    embedding: Tensor | None = None


class FaceReport(NamedTuple):
    """The faces of a picture of `size`, left to right; `chosen` is the number of the one that counts, from 1."""

    size: tuple[int, int]
    faces: tuple[ReportedFace, ...]
    chosen: int | None


def report_faces(
    pool: FacePool, pack: FacePack, reference: Reference, choice: FaceChoice, *, crops: bool, embeddings: bool
) -> FaceReport:
    """Find the faces of a picture; none is no error.

    Raises: NoFaceError where there are faces and not the chosen one; IPAdapterError.
    """
    picture = reference.picture()
    try:
        found = pool.faces(pack, reference, max(1, choice.index))
    except NoFaceError:
        return FaceReport(picture.size, (), None)
    chosen = chosen_face(found, choice, picture.size, reference.name)
    detailed = {chosen, *found[:MAX_DETAILED]}
    pixels = pixels_of(picture)

    def reported(face: Face) -> ReportedFace:
        if face not in detailed:
            return ReportedFace(face)
        return ReportedFace(
            face,
            face_warnings(pixels, face),
            aligned(pixels, face) if crops else None,
            pool.embedding(pack, pixels, face) if embeddings else None,
        )

    faces = left_to_right(found)
    return FaceReport(picture.size, tuple(map(reported, faces)), faces.index(chosen) + 1)
