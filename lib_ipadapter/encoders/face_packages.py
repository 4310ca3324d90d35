"""The packages that face analysis needs beside what the hosts bring: looked for when first used, named when missing.

onnxruntime runs the models, OpenCV resizes and warps exactly as the models were trained. Neither is imported before a
unit asks for a face.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from ..library.errors import MissingPackageError


def import_onnxruntime() -> ModuleType:
    """onnxruntime, its telemetry off (Windows builds have one).

    Raises: MissingPackageError when it is not installed or does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer runtimes read it while they load
    runtime = _import(
        "onnxruntime",
        "pip install onnxruntime (or onnxruntime-gpu, built for the CUDA of your torch)",
    )
    disable = getattr(runtime, "disable_telemetry_events", None)
    if disable is not None:
        disable()
    return runtime


def import_cv2() -> ModuleType:
    """OpenCV. Raises: MissingPackageError when it is not installed or does not load."""
    return _import("cv2", "pip install opencv-python-headless")


def _import(name: str, command: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise _broken(name, command, error) from error
        raise MissingPackageError(
            f"Finding faces needs the Python package {name}, which is not installed. Install it into the WebUI's "
            f"own environment, then start the WebUI again: {command}"
        ) from error
    except Exception as error:  # a binary that does not fit raises whatever its loader raises
        raise _broken(name, command, error) from error


def _broken(name: str, command: str, error: Exception) -> MissingPackageError:
    return MissingPackageError(
        f"Finding faces needs the Python package {name}, which is installed but does not load ({first_line(error)}). "
        f"Install it into the WebUI's own environment again, then start the WebUI again: {command}"
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
