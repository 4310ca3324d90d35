"""ONNX files opened and run with onnxruntime, for both engines: providers, threads, and errors that say something."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..library.errors import FaceModelError
from .face_packages import first_line, import_onnxruntime
from .faces import OnnxModel

logger = logging.getLogger("ipadapter")

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

STRIDES = (8, 16, 32)
"""Of SCRFD's three levels, in pixels; a picture it is shown is as many of each wide and high."""

MOST_THREADS = 4
"""A face takes milliseconds; more threads would only stand in the way of the host's."""

_ERRORS_ONLY = 3
"""onnxruntime's log severity; it warns of every detector, whose files state the shapes of one size only."""


def open_session(model: OnnxModel, *, cuda: bool) -> Any:
    """An `InferenceSession`: on CUDA where that is asked for and the installed onnxruntime has it, else on the CPU.

    A provider that does not load is a line in the log, never an error.

    Raises: MissingPackageError without onnxruntime, FaceModelError when the file is no ONNX model or unreadable.
    """
    runtime = import_onnxruntime()
    if cuda and CUDA in runtime.get_available_providers():
        # The default tries every algorithm anew for each size of picture.
        cuda_options = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        try:
            session = _open(runtime, model, [(CUDA, cuda_options), CPU])
        except Exception as error:  # whatever the provider's libraries raise; the CPU decides about the file
            logger.warning("Faces are found on the CPU: onnxruntime's CUDA provider failed (%s).", first_line(error))
        else:
            if CUDA not in session.get_providers():
                logger.warning(
                    "Faces are found on the CPU: onnxruntime's CUDA provider did not load; its CUDA and cuDNN have to "
                    "be those that this onnxruntime-gpu was built for."
                )
            return session
    try:
        return _open(runtime, model, [CPU])
    except Exception as error:  # onnxruntime's own errors have no common root, unreadable files raise others
        raise FaceModelError(
            f"{model.name} cannot be opened as an ONNX model ({first_line(error)}); the file is damaged, incomplete or "
            "something else. Download it again."
        ) from error


def _open(runtime: ModuleType, model: OnnxModel, providers: Sequence[Any]) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = min(MOST_THREADS, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would burn the sampler's
    source = model.source if isinstance(model.source, bytes) else str(model.source)
    return runtime.InferenceSession(source, options, providers=list(providers))


def run_session(session: Any, model: OnnxModel, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All outputs for one input. Raises: FaceModelError when the model fails to run."""
    try:
        return session.run(None, {session.get_inputs()[0].name: values})
    except Exception as error:  # onnxruntime's own errors have no common root
        raise failed(model, error) from error


def failed(model: OnnxModel, error: BaseException) -> FaceModelError:
    """What to raise when a model that was opened fails to run."""
    return FaceModelError(
        f"{model.name} failed to run ({first_line(error)}). If memory was short, close what else uses it; otherwise "
        "download the file again."
    )


def canvas_size(detector: Any, side: int) -> tuple[int, int]:
    """(height, width) of what a detector is shown: the file's own where that is fixed, else `side` in whole strides."""
    fixed = detector.get_inputs()[0].shape[2:4]
    if all(isinstance(edge, int) and edge > 0 for edge in fixed):
        return fixed[0], fixed[1]
    whole = max(1, -(-side // STRIDES[-1])) * STRIDES[-1]
    return whole, whole


def shape_of(value: Any) -> str:
    """An input's or output's shape as messages show it."""
    return "x".join("?" if size is None else str(size) for size in value.shape)


def check_detector(session: Any, model: OnnxModel) -> None:
    """Raises: FaceModelError when this is no SCRFD detector with keypoints."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs) != 9:
        raise FaceModelError(
            f"{model.name} is no face detector with keypoints: it has {len(inputs)} input(s), the first of shape "
            f"{shape_of(inputs[0])}, and {len(outputs)} output(s), where SCRFD has one picture and 9 outputs. "
            "Use det_10g.onnx (buffalo_l) or scrfd_10g_bnkps.onnx (antelopev2)."
        )


def check_recogniser(session: Any, model: OnnxModel) -> None:
    """Raises: FaceModelError when this does not take an aligned face and give one embedding."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    takes_a_face = len(inputs) == 1 and list(inputs[0].shape[1:]) == [3, 112, 112]
    if not takes_a_face or len(outputs) != 1 or outputs[0].shape[-1] != 512:
        raise FaceModelError(
            f"{model.name} is no face recogniser: it takes {shape_of(inputs[0])} and gives {len(outputs)} output(s), "
            f"the first of shape {shape_of(outputs[0])}, where ArcFace takes ?x3x112x112 and gives 1x512. "
            "Use w600k_r50.onnx (buffalo_l) or glintr100.onnx (antelopev2)."
        )
