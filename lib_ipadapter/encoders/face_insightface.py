"""The engine that runs the `insightface` package's own detector and recogniser, any version from 0.7.3 to 2.x.

Only their two classes are used, on sessions that are opened here: `FaceAnalysis` looks for folders, downloads, prints
and, in 2.x, merges sizes by itself. `face_engine` chooses between this and our own runner.
"""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .face_alignment import align_face
from .face_onnx import MOST_FACES, OVERLAP, RECOGNISED_SIDE, THRESHOLD, checked_embedding
from .face_packages import import_cv2, import_onnxruntime
from .face_sessions import canvas_size, check_detector, check_recogniser, failed, open_session
from .faces import Face, OnnxModel, Picture, checked, face_of


def import_insightface() -> tuple[str, Any, Any]:
    """The package's version, detector class and recogniser class; what it asks of the network at import is off.

    The detector is the class that the package itself routes a detector to: `RetinaFace` in 0.x, `SCRFD` since.

    Raises: MissingPackageError without onnxruntime or OpenCV; else whatever the package's import raises, and
    AttributeError for a version that has no such class.
    """
    import_onnxruntime()
    import_cv2()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # 0.7.3 imports albumentations, which asks for its version
    version = str(importlib.import_module("insightface").__version__)
    zoo = importlib.import_module("insightface.model_zoo")
    return version, zoo.RetinaFace if version.startswith("0.") else zoo.SCRFD, zoo.ArcFaceONNX


class InsightFaceEngine:
    """The package's SCRFD and ArcFace; see `faces.FaceEngine`."""

    def __init__(self, detector: OnnxModel, recogniser: OnnxModel | None, *, cuda: bool) -> None:
        """Open the models. Raises: MissingPackageError, FaceModelError; what the package's import raises."""
        version, detector_class, recogniser_class = import_insightface()
        self.name = f"insightface {version}"
        self._detector_model, self._recogniser_model = detector, recogniser
        session = open_session(detector, cuda=cuda)
        check_detector(session, detector)
        # Given a session and no file, 2.x keeps to that session instead of making one for each size.
        self._detector = detector_class(session=session)
        self._session = session
        self._recogniser = None if recogniser is None else _recogniser(recogniser_class, recogniser, cuda=cuda)

    def detect(self, picture: Picture, side: int) -> list[Face]:
        tall, wide = canvas_size(self._session, side)
        bgr = _at_least_a_pixel_thick(checked(picture), min(tall, wide))[:, :, ::-1]
        self._detector.det_thresh, self._detector.nms_thresh = THRESHOLD, OVERLAP
        try:
            boxes, keypoints = self._detector.detect(np.ascontiguousarray(bgr), input_size=(wide, tall))
        except Exception as error:  # the package raises whatever numpy, OpenCV and onnxruntime raise
            raise failed(self._detector_model, error) from error
        return [
            face_of(row[:4], row[4], points)
            for row, points in zip(boxes[:MOST_FACES], keypoints[:MOST_FACES], strict=True)
            if np.isfinite(row).all() and np.isfinite(points).all()
        ]

    def embed(self, picture: Picture, face: Face) -> NDArray[np.float32]:
        if self._recogniser is None or self._recogniser_model is None:
            raise ValueError("This engine was loaded to find faces only; load it with a recogniser.")
        # The package's own alignment needs a scikit-image that still has `estimate`; ours is the same matrix.
        aligned = align_face(picture, face, RECOGNISED_SIDE)
        try:
            embedding = self._recogniser.get_feat(np.ascontiguousarray(aligned[:, :, ::-1]))
        except Exception as error:  # as above
            raise failed(self._recogniser_model, error) from error
        return checked_embedding(embedding, self._recogniser_model)


def _recogniser(arcface: Any, model: OnnxModel, *, cuda: bool) -> Any:
    session = open_session(model, cuda=cuda)
    check_recogniser(session, model)
    # It reads the graph to see whether the file normalises by itself; onnx takes a path or something to read from.
    source = str(model.source) if isinstance(model.source, Path) else io.BytesIO(model.source)
    try:
        return arcface(model_file=source, session=session)
    except Exception as error:  # as above
        raise failed(model, error) from error


def _at_least_a_pixel_thick(picture: Picture, side: int) -> Picture:
    """The package shrinks a line of pixels to nothing and fails; black beside it keeps all coordinates."""
    height, width = picture.shape[:2]
    least = -(-max(height, width) // side)
    if min(height, width) >= least:
        return picture
    return np.pad(picture, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)))
