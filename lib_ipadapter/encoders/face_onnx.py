"""The engine that needs onnxruntime alone: SCRFD finds faces, ArcFace recognises them.

The networks, and what is done before and after them, are insightface's (`model_zoo/scrfd.py` and
`model_zoo/arcface_onnx.py`); `tests/parity/test_faces.py` compares the numbers. `face_engine` chooses between this and
the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..library.errors import FaceModelError, NotANumberError
from .face_alignment import align_face
from .face_packages import import_cv2
from .face_sessions import STRIDES, canvas_size, check_detector, check_recogniser, open_session, run_session
from .faces import EMBEDDING_DIM, Face, OnnxModel, Picture, checked, face_of

ANCHORS = 2
"""At each place of each stride."""

THRESHOLD = 0.5
OVERLAP = 0.4
"""Two boxes that share more of their union are one face."""

MOST_FACES = 2000
"""At one scale. A photo of a stadium has fewer that can be told apart; a detector that fires everywhere has more."""

RECOGNISED_SIDE = 112


class OnnxFaceEngine:
    """SCRFD and ArcFace on onnxruntime; see `faces.FaceEngine`."""

    def __init__(self, detector: OnnxModel, recogniser: OnnxModel | None, *, cuda: bool) -> None:
        """Open the models. Raises: MissingPackageError, FaceModelError."""
        self._detector_model, self._recogniser_model = detector, recogniser
        import_cv2()
        self._detector = open_session(detector, cuda=cuda)
        check_detector(self._detector, detector)
        self._recogniser = None if recogniser is None else open_session(recogniser, cuda=cuda)
        if recogniser is not None:
            check_recogniser(self._recogniser, recogniser)

    @property
    def name(self) -> str:
        from onnxruntime import __version__ as version

        return f"onnxruntime {version}"

    def detect(self, picture: Picture, side: int) -> list[Face]:
        canvas, scale = _fitted(checked(picture), canvas_size(self._detector, side))
        outputs = run_session(self._detector, self._detector_model, _blob(canvas, 128.0))
        scores, boxes, keypoints = _decoded(outputs, (canvas.shape[0], canvas.shape[1]), self._detector_model)
        order = np.argsort(-scores, kind="stable")
        boxes, keypoints, scores = boxes[order] / scale, keypoints[order] / scale, scores[order]
        kept = _kept(boxes, OVERLAP, MOST_FACES)
        return [face_of(boxes[index], scores[index], keypoints[index]) for index in kept]

    def embed(self, picture: Picture, face: Face) -> NDArray[np.float32]:
        if self._recogniser is None or self._recogniser_model is None:
            raise ValueError("This engine was loaded to find faces only; load it with a recogniser.")
        aligned = align_face(picture, face, RECOGNISED_SIDE)
        (embedding,) = run_session(self._recogniser, self._recogniser_model, _blob(aligned, 127.5))
        return checked_embedding(embedding, self._recogniser_model)


def checked_embedding(embedding: NDArray[Any], model: OnnxModel) -> NDArray[np.float32]:
    """A recogniser's output as float32 `(512,)`.

    Raises: FaceModelError for another size, NotANumberError when a value is not finite.
    """
    flat = np.asarray(embedding, np.float32).reshape(-1)
    if flat.size != EMBEDDING_DIM:
        raise FaceModelError(
            f"{model.name} gave an embedding of {flat.size} numbers where ArcFace gives {EMBEDDING_DIM}; it is not the "
            "recogniser that the adapter was trained with."
        )
    if not np.isfinite(flat).all():
        raise NotANumberError(
            f"{model.name} computed {int((~np.isfinite(flat)).sum())} values of {flat.size} that are no finite numbers "
            "for a face, which would make the picture black; download the file again."
        )
    return flat


def _fitted(picture: Picture, size: tuple[int, int]) -> tuple[Picture, float]:
    """The picture shrunk or enlarged into the top left of a black canvas, and by what factor."""
    (height, width), (tall, wide) = picture.shape[:2], size
    ratio = height / width
    new_height, new_width = (tall, int(tall / ratio)) if ratio > tall / wide else (int(wide * ratio), wide)
    new_height, new_width = max(1, new_height), max(1, new_width)
    canvas = np.zeros((tall, wide, 3), np.uint8)
    canvas[:new_height, :new_width] = import_cv2().resize(picture, (new_width, new_height))
    # A line of pixels is enlarged where it would vanish; its length is what gives the scale then.
    return canvas, new_height / height if new_height > 1 else new_width / width


def _blob(picture: Picture, spread: float) -> NDArray[np.float32]:
    """`(1, 3, H, W)`: (value - 127.5) / spread."""
    values = (picture.astype(np.float32) - np.float32(127.5)) * np.float32(1.0 / spread)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _decoded(
    outputs: list[NDArray[np.float32]], size: tuple[int, int], model: OnnxModel
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scores `(n,)`, boxes `(n, 4)` and keypoints `(n, 5, 2)` over the threshold, in pixels of the canvas.

    The network says how far each edge and each keypoint is from its anchor, in strides.
    """
    found: list[tuple[NDArray[np.float32], ...]] = []
    for level, stride in enumerate(STRIDES):
        rows, columns = size[0] // stride, size[1] // stride
        count = rows * columns * ANCHORS
        widths = (1, 4, 10)
        sizes = [outputs[level + part * len(STRIDES)].size for part in range(3)]
        if sizes != [count * wide for wide in widths]:
            raise FaceModelError(
                f"{model.name} gave {sizes} numbers at stride {stride} for a picture of {size[1]} x {size[0]}, where "
                f"SCRFD gives {[count * wide for wide in widths]}; it is another kind of detector."
            )
        scores, distances, offsets = (
            outputs[level + part * len(STRIDES)].reshape(count, wide) for part, wide in enumerate(widths)
        )
        (hits,) = np.nonzero(scores[:, 0] >= THRESHOLD)
        places = hits // ANCHORS
        anchors = np.stack([places % columns, places // columns], axis=1).astype(np.float32) * stride
        distances, offsets = distances[hits] * stride, offsets[hits].reshape(-1, 5, 2) * stride
        boxes = np.concatenate([anchors - distances[:, :2], anchors + distances[:, 2:]], axis=1)
        found.append((scores[hits, 0], boxes, anchors[:, None] + offsets))
    scores, boxes, keypoints = (np.concatenate(part) for part in zip(*found, strict=True))
    sane = np.isfinite(boxes).all(axis=1) & np.isfinite(keypoints).all(axis=(1, 2))
    return scores[sane], boxes[sane], keypoints[sane]


def _kept(boxes: NDArray[np.float32], overlap: float, most: int) -> list[int]:
    """Greedy non-maximum suppression of boxes `(n, 4)`, best first: which to keep.

    Edges count as inside, a pixel wide, as in insightface. The work is bounded by what is kept, not by what came in.
    """
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    left = np.arange(len(boxes))
    kept: list[int] = []
    while left.size and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.maximum(0.0, high - low + 1).prod(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # boxes without area, from a file that is no detector
            left = left[shared / (areas[best] + areas[left] - shared) <= overlap]
    return kept
