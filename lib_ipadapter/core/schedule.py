"""What one UNet call is: the kind of each batch row, and how far the pass has come.

`hosts` fill a `UNetCall` before each call of the UNet, `core.attach` reads it, `session` makes the windows.
"""

from __future__ import annotations

from typing import NamedTuple

COND = 0
UNCOND = 1


class Window(NamedTuple):
    """The part of a pass in which a unit acts, as fractions of the pass's steps."""

    start: float = 0.0
    end: float = 1.0

    def active(self, fraction: float) -> bool:
        """Whether a step acts, before which `fraction` of the pass was done: start <= fraction < end, or end = 1."""
        return self.start <= fraction and (fraction < self.end or self.end >= 1.0)


class UNetCall(NamedTuple):
    """One call of the UNet: `rows` holds COND or UNCOND per batch row, `fraction` is what was done before this step."""

    rows: tuple[int, ...]
    fraction: float
