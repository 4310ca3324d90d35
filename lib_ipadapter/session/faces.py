"""References to faces: which are in a picture, which one counts, its embedding and its aligned crop; kept by content.

`session.tokens` reads a unit's photos through one `FacePool` per job; the page, the API and the identity score have
pools of their own over the same cache.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..encoders.face_alignment import align_face
from ..encoders.face_choice import choose_face, face_warnings
from ..encoders.face_engine import load_face_engine
from ..encoders.face_search import find_faces
from ..encoders.faces import Face, FaceEngine, OnnxModel, Picture
from ..hosts.base import Host
from ..library.errors import NoFaceError
from ..library.face_models import FaceModel
from ..library.face_packs import FacePack
from ..units.face_choice import FaceChoice
from .cache import ResultCache
from .features import Reference
from .pools import ReleasedPool

CROP_SIDE = 224
"""Side of the aligned crop that CLIP sees (tencent-ailab/IP-Adapter wiki, IP-Adapter-Face: norm_crop, 224)."""

FACE_BYTES = 500
"""About what one found face takes in memory."""

MOST_COMPARED = 32
"""Faces of a result, largest first, that are compared with the reference."""

MISFIT_COSINE = 0.3
"""Below this two photos are hardly of one person: pairs of one person lie above 0.4 in most of ArcFace's test sets."""


@dataclass(frozen=True)
class FaceReading:
    """The face of one picture that counts.

    `embedding` (512,) is raw, float32 on the CPU; `crop` the aligned RGB square; `faces` all that were found, largest
    first, with `face` among them; `warnings` say what may make it a poor reference.
    """

    face: Face
    faces: tuple[Face, ...]
    embedding: Tensor = field(repr=False)
    crop: Image.Image = field(repr=False)
    warnings: tuple[str, ...] = ()


class _Searched(NamedTuple):
    """What a search has found; where that is nothing, `problem` says so of a picture that was called `name`."""

    faces: tuple[Face, ...]
    name: str = ""
    problem: str = ""


class FacePool(ReleasedPool):
    """Analyses pictures with whatever pack each unit needs, holding one engine at a time.

    `analysed` counts the pictures that really went through an engine.
    """

    def __init__(self, host: Host, cache: ResultCache) -> None:
        self._host = host
        self._cache = cache
        self._loaded: tuple[str, FaceEngine] | None = None
        self.analysed = 0

    def release(self) -> None:
        """Drop the engine; its sessions hold the models' weights."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()

    def faces(self, pack: FacePack, reference: Reference, wanted: int = 1) -> tuple[Face, ...]:
        """The faces of a picture, largest first; looks harder until there are `wanted`.

        Which are found depends on the picture, the pack and `wanted` alone, not on what was asked before.

        Raises: NoFaceError naming the picture, where there is none; IPAdapterError.
        """

        def search() -> tuple[_Searched, int]:
            self.analysed += 1
            try:
                found = find_faces(self._engine(pack), pixels_of(reference.picture()), reference.name, wanted)
            except NoFaceError as error:
                return _Searched((), reference.name, str(error)), FACE_BYTES
            return _Searched(found), FACE_BYTES * len(found)

        known = self._cache.get_or_make(("faces", reference.digest, pack.fingerprint, wanted), _Searched, search)
        if known.problem:
            raise NoFaceError(known.problem.replace(known.name, reference.name, 1))
        return known.faces

    def read(self, pack: FacePack, reference: Reference, choice: FaceChoice) -> FaceReading:
        """The chosen face of a picture. Raises: NoFaceError naming the picture; IPAdapterError."""
        faces = self.faces(pack, reference, max(1, choice.index))

        def analyse() -> tuple[FaceReading, int]:
            picture = reference.picture()
            face, pixels = chosen_face(faces, choice, picture.size, reference.name), pixels_of(picture)
            embedding = self.embedding(pack, pixels, face)
            reading = FaceReading(face, faces, embedding, aligned(pixels, face), face_warnings(pixels, face))
            return reading, embedding.nbytes + 3 * CROP_SIDE**2

        key = ("face", reference.digest, pack.fingerprint, str(choice))
        reading = self._cache.get_or_make(key, FaceReading, analyse)
        return replace(reading, warnings=tuple(f"{reference.name}: {warning}" for warning in reading.warnings))

    def embedding(self, pack: FacePack, pixels: Picture, face: Face) -> Tensor:
        """The raw embedding (512,) of a face of the picture; not kept."""
        return torch.from_numpy(self._engine(pack).embed(pixels, face)).float()

    def embeddings(self, pack: FacePack, picture: Image.Image) -> Tensor:
        """The raw embeddings (n, 512) of the faces in a picture that is no reference, none where there is none; not
        kept.
        """
        pixels = pixels_of(picture)
        try:
            found = find_faces(self._engine(pack), pixels)
        except NoFaceError:
            return torch.empty(0, 512)
        return torch.stack([self.embedding(pack, pixels, face) for face in found[:MOST_COMPARED]])

    def _engine(self, pack: FacePack) -> FaceEngine:
        if self._loaded is not None and self._loaded[0] == pack.fingerprint:
            return self._loaded[1]
        self.release()
        cuda = self._host.device().type == "cuda"
        engine = load_face_engine(_opened(pack.detector), _opened(pack.recogniser), cuda=cuda)
        self._loaded = (pack.fingerprint, engine)
        return engine


def left_to_right(faces: Sequence[Face]) -> tuple[Face, ...]:
    """The faces in the order in which they are numbered."""
    return tuple(sorted(faces, key=lambda face: face.centre))


def aligned(pixels: Picture, face: Face) -> Image.Image:
    """The square of `CROP_SIDE` pixels that goes in of a face, upright by its keypoints."""
    return Image.fromarray(align_face(pixels, face, CROP_SIDE))


def chosen_face(faces: Sequence[Face], choice: FaceChoice, size: tuple[int, int], name: str) -> Face:
    """The face that counts in a picture of `size`. Raises: NoFaceError, which calls the picture `name`."""
    return choose_face(faces, choice.how, index=choice.index, point=choice.point, size=size, name=name)


def mean_embedding(embeddings: Tensor) -> Tensor:
    """The normalised mean of raw embeddings, (n, 512) -> (1, 512), as long as they are on average.

    Each photo counts the same, however long its embedding is; what wants unit length normalises the result.
    """
    direction = normalize(normalize(embeddings, dim=1).mean(dim=0, keepdim=True), dim=1)
    return direction * embeddings.norm(dim=1).mean()


def misfits(embeddings: Tensor, names: Sequence[str]) -> list[str]:
    """A sentence for every photo whose face is unlike the mean of the others' (n, 512)."""
    if len(names) < 2:
        return []
    units = normalize(embeddings, dim=1)
    sentences: list[str] = []
    for place, name in enumerate(names):
        others = mean_embedding(torch.cat((units[:place], units[place + 1 :])))
        cosine = float(normalize(others, dim=1)[0] @ units[place])
        if cosine < MISFIT_COSINE or math.isnan(cosine):
            whom = "the other" if len(names) == 2 else "the mean of the others"
            sentences.append(
                f"{name}: its face does not fit {whom} (cosine {cosine:.2f}, one person's photos have "
                f"{MISFIT_COSINE} or more); it may show somebody else."
            )
        if len(names) == 2 and sentences:
            break  # the other photo's sentence would say the same
    return sentences


def _opened(model: FaceModel) -> OnnxModel:
    """A model as engines open it: a file where it is, a zip's member as its bytes."""
    return OnnxModel(model.member or model.path.name, model.read() if model.member else model.path)


def pixels_of(picture: Image.Image) -> Picture:
    """A picture as the engines take it; a copy, so convert once."""
    return np.asarray(picture)
