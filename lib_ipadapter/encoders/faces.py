"""What a face is here, and what an engine that finds and recognises faces has to offer.

`face_onnx` and `face_insightface` are the two engines, `face_engine` chooses between them, `face_search` finds faces
with either; `session` and the page know only what is in here and what `face_search` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""RGB, `(H, W, 3)`, uint8."""

Point = tuple[float, float]

EMBEDDING_DIM = 512


@dataclass(frozen=True)
class OnnxModel:
    """One ONNX file to open: where it is, or what is in it (a member of a zip); `name` is what messages call it."""

    name: str
    source: Path | bytes


@dataclass(frozen=True)
class Face:
    """One face in a picture, in pixels of that picture, the origin at its top left corner.

    `box` is (x1, y1, x2, y2) and may reach beyond the picture where the face does. `keypoints` are the eye, eye, nose,
    mouth corner, mouth corner; of each pair the one that is left in the picture comes first. `score` is the
    detector's, 0 to 1.
    """

    box: tuple[float, float, float, float]
    score: float
    keypoints: tuple[Point, Point, Point, Point, Point]

    @property
    def width(self) -> float:
        return max(0.0, self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        return max(0.0, self.box[3] - self.box[1])

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def centre(self) -> Point:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def moved(self, dx: float, dy: float, scale: float = 1.0) -> Face:
        """The same face in another picture: each coordinate multiplied by `scale`, then moved."""
        x1, y1, x2, y2 = self.box
        box = (x1 * scale + dx, y1 * scale + dy, x2 * scale + dx, y2 * scale + dy)
        return face_of(box, self.score, [(x * scale + dx, y * scale + dy) for x, y in self.keypoints])


class FaceEngine(Protocol):
    """A detector and, if it was given one, a recogniser."""

    @property
    def name(self) -> str:
        """What runs the models, as people write it: "insightface 2.1", "onnxruntime 1.23.2"."""
        ...

    def detect(self, picture: Picture, side: int) -> list[Face]:
        """The faces at one scale, best score first: the whole picture fitted into a square of `side` pixels.

        Raises: FaceModelError when the detector fails to run.
        """
        ...

    def embed(self, picture: Picture, face: Face) -> NDArray[np.float32]:
        """The recogniser's raw embedding of a face, float32 `(512,)`: ArcFace's, not divided by its norm.

        Raises: FaceModelError when the recogniser fails to run or the keypoints are all one point, NotANumberError
        when the embedding is not finite, ValueError when the engine was loaded without a recogniser.
        """
        ...


def face_of(box: Sequence[float], score: float, keypoints: Sequence[Sequence[float]]) -> Face:
    """A face from a detector's rows: four, and five times two numbers."""
    x1, y1, x2, y2 = box
    first, second, nose, third, fourth = ((float(x), float(y)) for x, y in keypoints)
    return Face((float(x1), float(y1), float(x2), float(y2)), float(score), (first, second, nose, third, fourth))


def checked(picture: Picture) -> Picture:
    """The picture itself. Raises: ValueError when it is not RGB uint8 `(H, W, 3)` with at least one pixel."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"A picture is uint8 (H, W, 3) here, not {picture.dtype} {picture.shape}.")
    return picture
