"""Which engine finds and recognises faces: the `insightface` package where it imports, else our own runner.

`session` and the page load one here for as long as they have pictures to look at, and drop it.
"""

from __future__ import annotations

import logging
from typing import Literal

from ..library.errors import IPAdapterError, MissingPackageError
from .face_insightface import InsightFaceEngine, import_insightface
from .face_onnx import OnnxFaceEngine
from .face_packages import first_line
from .faces import FaceEngine, OnnxModel

logger = logging.getLogger("ipadapter")

Prefer = Literal["auto", "insightface", "onnxruntime"]

_told: set[str] = set()
"""What was logged already; a broken package stays broken until the WebUI is started again."""


def load_face_engine(
    detector: OnnxModel, recogniser: OnnxModel | None, *, cuda: bool, prefer: Prefer = "auto"
) -> FaceEngine:
    """Open the models with the engine that is there; both give the same numbers.

    Without `recogniser` the engine only finds faces. `cuda` is a wish: without a provider that loads it is the CPU. An
    insightface that is installed and does not import is a line in the log.

    Raises: MissingPackageError without onnxruntime or OpenCV, or without an insightface that was asked for by name;
    FaceModelError when a file is damaged or is another kind of model.
    """
    if prefer != "onnxruntime" and _insightface_imports(asked_for=prefer == "insightface"):
        return InsightFaceEngine(detector, recogniser, cuda=cuda)
    return OnnxFaceEngine(detector, recogniser, cuda=cuda)


def _insightface_imports(*, asked_for: bool) -> bool:
    """Raises: MissingPackageError when it does not and was asked for by name, or its and our needs are missing."""
    try:
        import_insightface()
    except IPAdapterError:
        raise
    except Exception as error:  # a package built for another numpy raises whatever it hits first
        absent = isinstance(error, ModuleNotFoundError) and error.name == "insightface"
        if asked_for:
            state = "is not installed" if absent else f"does not load ({first_line(error)})"
            raise MissingPackageError(
                f"The Python package insightface {state}. Choose another face engine: onnxruntime runs the same "
                "models; or install it without what it would replace: pip install --no-deps insightface"
            ) from error
        if not absent and first_line(error) not in _told:
            _told.add(first_line(error))
            logger.warning("insightface does not load (%s); onnxruntime alone runs its models.", first_line(error))
        return False
    return True
