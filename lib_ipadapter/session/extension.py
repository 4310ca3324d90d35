"""IdentityNet run by the ControlNet extension: which units ask for it, and what it cannot do for them.

`webui.script` calls `reserve` while a job begins, before the extension reads its units; `session.job` and `identity`
drive the `JobExtension` from then on. The hosts' side is `hosts.extension_nets`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.attach import Companion
from ..hosts.extension_nets import ExtensionNet, ExtensionPair
from ..library.checkpoints import checkpoint_base
from ..library.errors import IPAdapterError, UnsupportedHostStateError, WrongBaseError
from ..library.spec import CONTEXT_WIDTHS, ControlNetSpec, base_title
from ..units.regions import AUTO, parse_region
from ..units.unit import Request, Unit
from .failures import afresh, as_named
from .identity_files import NONE
from .identity_unit import wants_net
from .models import Choice
from .services import Services

CONTROLNET = "controlnet"
BUILT_IN = "set the unit to run IdentityNet built-in"


def reserve(p: Any, request: Request, services: Services) -> JobExtension | None:
    """Let the extension know of the job's IdentityNets in time; None where no unit goes through it.

    What stands against it is kept and raised when the unit is prepared, where a job can be stopped.
    """
    if not request.enabled or not any(_asks(unit) for _, unit in request.numbered):
        return None
    extension = JobExtension(p, services)
    extension.reserve(p, [unit for _, unit in request.numbered if _asks(unit)])
    return extension


class JobExtension:
    """The ControlNet extension in one job. `owner` is its processing object: copies of that bring it along."""

    def __init__(self, p: Any, services: Services) -> None:
        self._owner = weakref.ref(p)
        self._services = services
        self._nets = services.host.extension_nets(p)
        self._problem: IPAdapterError | None = None

    @property
    def owner(self) -> Any:
        return self._owner()

    def reserve(self, p: Any, units: Sequence[Unit]) -> None:
        """Take what the extension has to have before it reads its units."""
        try:
            self._nets.reserve(p, lambda checkpoint: self._pairs(units, checkpoint))
        except Exception as error:
            self._problem = afresh(as_named(error, "The ControlNet extension's unit"))

    def settle(self) -> None:
        """The extension has read its units."""
        try:
            self._nets.settle(self.owner)
        except Exception as error:
            self._problem = afresh(as_named(error, "The ControlNet extension's unit"))

    def prepare(self, p: Any, unit: Unit, choice: Choice) -> None:
        """See that the extension can run the unit's net exactly. Raises: IPAdapterError."""
        assert choice.net is not None
        reason = self._reason_against(p, unit)
        if reason:
            raise UnsupportedHostStateError(f"The ControlNet extension {reason}, or {BUILT_IN}.")
        if self._problem is not None:
            raise afresh(self._problem)
        self._nets.ready(p, ExtensionPair(choice.path, choice.net.path, choice.net.spec))

    def enter(self, p: Any, nets: Sequence[ExtensionNet], *, sampling: bool) -> Sequence[Companion]:
        """What watches the pass's UNet calls. Raises: UnsupportedHostStateError."""
        return self._nets.enter(p, self._services.host.unet(p), nets, sampling=sampling)

    def begin_step(self, params: Any) -> None:
        self._nets.begin_step(params)

    def leave(self) -> None:
        self._nets.leave()

    def close(self) -> None:
        """The job is over."""
        self._nets.close(self.owner)

    def _reason_against(self, p: Any, unit: Unit) -> str:
        if unit.net_rows != "both":
            return "runs IdentityNet for prompt and negative: set IdentityNet rows to both"
        region = parse_region(unit.region)
        if not region.is_everywhere and region.text != AUTO:
            return "places regions in another way than image prompts do: let the unit act everywhere"
        later = self._services.host.later_checkpoints(p)
        if later:
            named = ", ".join(f"{one.name} for the {one.role}" for one in later)
            return f"runs IdentityNet with the job's first checkpoint only: leave out the second one ({named})"
        return ""

    def _pairs(self, units: Sequence[Unit], checkpoint: Path | None) -> list[ExtensionPair]:
        """The units' files with the checkpoint that the job is going to load; a unit that wants no net has none."""
        info = checkpoint_base(checkpoint) if checkpoint is not None else None
        if info is None or not info.base:
            raise WrongBaseError(
                "It is not known which checkpoint the job is going to load, so the ControlNet extension cannot be "
                f"given its files: {BUILT_IN}."
            )
        base, models = info.base, self._services.models
        models.refresh()

        def fit(spec: ControlNetSpec) -> ControlNetSpec:
            if base in CONTEXT_WIDTHS.get(spec.context_dim, ()):
                return spec
            raise WrongBaseError(f"IdentityNet's file is not for {base_title(base)}.")

        pairs = []
        for unit in units:
            choice = models.choose(unit.adapter, unit.intent, [base])
            if wants_net(unit, choice.spec):
                net = models.identity_net(unit.identity_net, choice, fit)
                pairs.append(ExtensionPair(choice.path, net.path, net.spec))
        return pairs


def _asks(unit: Unit) -> bool:
    """Whether a unit goes through the extension, as far as its fields say."""
    off = unit.weight == 0.0 or unit.net_weight == 0.0 or unit.keypoints == "none"
    return unit.net_engine == CONTROLNET and not off and unit.identity_net.strip().lower() != NONE
