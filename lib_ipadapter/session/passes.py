"""One sampling pass: which prepared units fit its UNet, attached until the pass is closed. Used by `session.job`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.attach import AttachmentScope, ReadCall, UnitAttention, attach
from ..core.layers import CrossAttentionLayer, check_fit, find_cross_attention
from ..core.weighting import layer_weights
from ..library.errors import IPAdapterError, WrongBaseError
from ..library.spec import base_title
from .planning import base_of
from .prepare import PreparedUnit


@dataclass(frozen=True)
class PassPlan:
    """The job's prepared units, and the numbers of those that were in a pass, and acted in a step, so far."""

    units: tuple[PreparedUnit, ...]
    attached: set[int] = field(default_factory=set)
    acted: set[int] = field(default_factory=set)


class PassAttachment:
    """What is attached to `unet`; `close` removes it."""

    def __init__(self, unet: nn.Module, scope: AttachmentScope, plan: PassPlan, units: Sequence[PreparedUnit]) -> None:
        self.unet = unet
        self._scope = scope
        self._plan = plan
        self._units = units

    def note(self, fraction: float) -> None:
        """Remember which units act in a step before which `fraction` of the pass was done."""
        self._plan.acted.update(unit.number for unit in self._units if unit.window.active(fraction))

    def close(self) -> None:
        self._scope.close()


def attach_pass(
    unet: nn.Module, plan: PassPlan, read_call: ReadCall, warn: Callable[[str], None]
) -> PassAttachment:
    """Attach the units that fit `unet`; one that does not is off in this pass, and `warn` is told."""
    layers = find_cross_attention(unet)
    fitting: list[PreparedUnit] = []
    for unit in plan.units:
        try:
            check_pass(unet, layers, unit)
        except WrongBaseError as error:
            warn(f"Unit {unit.number} was off in a pass that it does not fit. {error}")
        else:
            fitting.append(unit)
    attentions = [
        UnitAttention(
            unit.name,
            dict(unit.kv),
            layer_weights(_layers_for(unit), layers, unit.unit.weight),
            unit.window,
        )
        for unit in fitting
    ]
    plan.attached.update(unit.number for unit in fitting)
    return PassAttachment(unet, attach(unet, attentions, read_call, layers), plan, fitting)


def _layers_for(unit: PreparedUnit) -> str:
    """The intent that chooses the layers: an adapter trained for composition alone acts on all of them."""
    intent = unit.unit.intent
    return "image" if intent == "composition" and unit.choice.spec.variant == "composition" else intent


def check_pass(unet: nn.Module, layers: Sequence[CrossAttentionLayer], unit: PreparedUnit) -> None:
    """Raises WrongBaseError when the unit's adapter is not for this UNet."""
    spec = unit.choice.spec
    check_fit(layers, spec)
    base = base_of(unet, layers)
    if base != spec.base:
        raise WrongBaseError(
            f"{unit.choice.name} is for {base_title(spec.base)} and the checkpoint is {base_title(base)}."
        )


def refuse_pass(unet: nn.Module, plan: PassPlan, failure: IPAdapterError) -> PassAttachment:
    """Stand in for an attachment that failed: the next call of the UNet raises why."""

    def refuse(module: nn.Module, args: Any) -> None:
        raise failure

    scope = AttachmentScope()
    scope.hold(unet.register_forward_pre_hook(refuse, prepend=True))
    return PassAttachment(unet, scope, plan, ())
