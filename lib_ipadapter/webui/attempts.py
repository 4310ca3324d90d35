"""A named error as the sentence that the page shows. Used by what draws and by what listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..library.errors import IPAdapterError

T = TypeVar("T")


def attempt(call: Callable[[], T], otherwise: T) -> tuple[T, str]:
    """The call's answer and no sentence, or `otherwise` and the sentence of the named error that it raised."""
    try:
        return call(), ""
    except IPAdapterError as error:
        return otherwise, str(error)
