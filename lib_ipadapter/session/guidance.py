"""Rescaled guidance in a job: in which steps, by how much, and for which units it really ran.

`session.ready` makes one `JobRescale`; `session.passes` puts it on and tells it of every call of the UNet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from ..core.guidance import rescale_guidance
from ..core.schedule import UNCOND, UNetCall
from ..hosts.base import Host
from ..hosts.guidance import Guidance
from .prepare import PreparedUnit


class PassRescale:
    """Rescaling in one pass, where a unit asks for it.

    The guided prediction is one for all units, so of the units that act in a step the largest amount counts. A step
    without negative rows (CFG 1, skipped early, NGMS) is not guided and stays as it is.
    """

    def __init__(self, host: Host, p: Any, amounts: dict[int, float], ran: set[int]) -> None:
        self._amounts = amounts
        self._ran = ran
        self._acting: set[int] = set()
        self._is_guided = False
        self._guidance: Guidance | None = host.guide(p, self._rescale) if amounts else None

    def begin_step(self, params: Any) -> None:
        """A step begins; what acts in it and whether it is guided is in its calls."""
        self._acting, self._is_guided = set(), False
        if self._guidance is not None:
            self._guidance.begin_step(params)

    def note(self, call: UNetCall, acting: Collection[int]) -> None:
        """Take a call of the step, and the numbers of the units that act in it."""
        self._acting.update(acting)
        self._is_guided = self._is_guided or UNCOND in call.rows

    def close(self) -> None:
        """Let go of the host."""
        guidance, self._guidance = self._guidance, None
        if guidance is not None:
            guidance.remove()

    def _rescale(self, guided: Tensor, cond: Tensor, still: Tensor) -> Tensor:
        acting = self._acting & self._amounts.keys()
        if not acting or not self._is_guided:
            return guided
        self._ran.update(acting)
        return rescale_guidance(guided, cond, still, max(self._amounts[number] for number in acting))


class JobRescale:
    """Rescaling in one job; `ran` are the numbers of the units in whose steps it ran so far."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.ran: set[int] = set()

    def put_on(self, p: Any, units: Iterable[PreparedUnit]) -> PassRescale:
        """Rescaling in a pass of these units; nothing touches the host where none asks for it."""
        amounts = {one.number: one.unit.cfg_rescale for one in units if one.unit.cfg_rescale > 0.0}
        return PassRescale(self._host, p, amounts, self.ran)
