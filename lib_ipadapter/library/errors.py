"""The one tree of named errors; every layer raises from here and `webui.script` catches the root once.

Stdlib only, so that any layer may import it. A message says what happened, with the numbers, and what to do next;
class names are shown to page users by the hosts, so they read as words.
"""

from __future__ import annotations


class IPAdapterError(Exception):
    """Root of everything this extension raises on purpose.

    `status_code` and `detail` are instance attributes because the WebUI's API reads `vars(error)` and answers
    with that HTTP status and that sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status_code = 422
        self.detail = message


class BadUnitError(IPAdapterError):
    """A unit's field is unknown, out of range, of the wrong type, or there are too many units."""


class BadImageError(IPAdapterError):
    """A reference picture is missing, unreadable or too large, or its id does not resolve."""


class IdentityNetError(IPAdapterError):
    """InstantID's ControlNet is not in the searched folders, or a file that was named is none that can run."""


class KeypointsError(IPAdapterError):
    """A face's five keypoints are malformed, or lie outside the picture or the canvas they are for."""


class AdapterFileError(IPAdapterError):
    """A model file is unreadable, damaged, ambiguous, unsupported or not an adapter."""


class AdapterNotFoundError(IPAdapterError):
    """No adapter file of that name, or none that fits the loaded checkpoint, in the searched folders."""


class WrongBaseError(IPAdapterError):
    """An adapter does not fit the checkpoint (layer count, context width or layer widths differ)."""


class EncoderNotFoundError(IPAdapterError):
    """The vision encoder an adapter needs is not in the searched folders."""


class WrongEncoderError(IPAdapterError):
    """An encoder's features are missing or not of the width an adapter's projector was made for."""


class FacePackError(IPAdapterError):
    """The face models an adapter needs are not in the searched folders, or only in part, or are another pack's."""


class NotANumberError(IPAdapterError):
    """An encoder or an adapter computed NaN or infinity, which would make the picture black."""


class FaceModelError(IPAdapterError):
    """A face analysis model (ONNX) is damaged, is not what it should be, or failed to run."""


class NoFaceError(IPAdapterError):
    """No face was found in a picture, or fewer than the one asked for."""


class MissingPackageError(IPAdapterError):
    """A Python package that the host does not ship is needed and cannot be imported."""


class UnsupportedHostStateError(IPAdapterError):
    """The host is in a state in which the image prompt cannot act as asked (old host, TensorRT, tiled calls...)."""


class UnexplainedRowsError(UnsupportedHostStateError):
    """A UNet call's rows cannot be told into prompt and negative rows."""


class OutOfMemoryError(IPAdapterError):
    """The device or the machine has too little memory for an encoder, an adapter or its keys and values."""


class InternalError(IPAdapterError):
    """Something failed that this extension did not foresee; the log has the traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status_code = 500
