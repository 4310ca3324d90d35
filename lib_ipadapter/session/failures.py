"""From whatever was raised to one of our named errors, with a sentence for people and the traceback for the log."""

from __future__ import annotations

import logging

import torch

from ..library.errors import InternalError, IPAdapterError, OutOfMemoryError

logger = logging.getLogger("ipadapter")


def afresh(error: IPAdapterError, prefix: str = "") -> IPAdapterError:
    """The same error without the frames that it was raised through, which keep all that they hold."""
    made = type(error)(f"{prefix}{error}")
    made.status_code = error.status_code
    return made


def as_named(error: Exception, what: str) -> IPAdapterError:
    """The error itself when it is ours; otherwise a sentence that says that `what` failed, and on what.

    To be raised `from None`: what was not foreseen is in the log, and an error that is its own cause hangs whatever
    walks the chain (rich's tracebacks, which A1111's API prints).
    """
    if isinstance(error, IPAdapterError):
        return error
    logger.error("%s failed", what, exc_info=error)
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return OutOfMemoryError(
            f"{what} ran out of memory. Close what else uses the GPU, choose a smaller adapter or fewer reference "
            "pictures, or start the WebUI with --medvram."
        )
    return InternalError(
        f"{what} failed in a way that was not foreseen ({type(error).__name__}: {error}). The console has the "
        "details; please report them."
    )
