"""One sampling pass: which prepared units fit its UNet, attached until the pass is closed. Used by `session.job`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.attach import AttachmentScope, ReadCall, UnitAttention, attach
from ..core.identity_fit import fit_to_unet
from ..core.layers import CrossAttentionLayer, check_fit, find_cross_attention
from ..core.masks import is_nowhere
from ..core.residuals import UNetResiduals
from ..core.schedule import UNetCall
from ..core.weighting import layer_weights
from ..library.errors import IPAdapterError, UnsupportedHostStateError, WrongBaseError
from ..library.spec import base_title
from .guidance import JobRescale, PassRescale
from .identity import JobNets
from .identity_unit import net_window
from .loras import JobLoras, PassLoras
from .people import draw_masks
from .planning import base_of
from .prepare import PreparedUnit, order_of_sums
from .regions import Canvas


@dataclass(frozen=True)
class PassPlan:
    """The job's prepared units, LoRAs and nets, and the numbers of the units that were in a pass, and acted, so far.

    `net_acted` are those whose IdentityNet acted, which counts as acting too. `outside` has those that were left out of
    a pass because no part of their region was sampled in it. `places` are the regions that follow from faces, in words.
    """

    units: tuple[PreparedUnit, ...]
    loras: JobLoras
    nets: JobNets
    rescale: JobRescale
    places: Mapping[int, str] = field(default_factory=dict)
    attached: set[int] = field(default_factory=set)
    acted: set[int] = field(default_factory=set)
    net_acted: set[int] = field(default_factory=set)
    outside: set[int] = field(default_factory=set)

    @property
    def with_lora(self) -> set[int]:
        """The numbers of the units whose LoRA was on in a pass, whether they acted in a step or not."""
        return self.attached & self.loras.told.keys()

    @property
    def with_net(self) -> set[int]:
        """The numbers of the units that have an IdentityNet."""
        return {unit.number for unit in self.units if unit.identity is not None}


class PassAttachment:
    """What is attached to `unet`; `close` removes it."""

    def __init__(
        self,
        unet: nn.Module,
        scope: AttachmentScope,
        plan: PassPlan,
        units: Sequence[PreparedUnit],
        loras: PassLoras,
        rescale: PassRescale | None = None,
    ) -> None:
        self.unet = unet
        self._scope = scope
        self._plan = plan
        self._units = units
        self._loras = loras
        self._rescale = rescale
        self._called = False

    def begin_step(self, params: Any) -> None:
        """A step is about to call the UNet; `params` are the denoiser's."""
        if self._rescale is not None:
            self._rescale.begin_step(params)

    def note(self, call: UNetCall) -> None:
        """Remember which units act in a call of the UNet."""
        self._called = True
        plan, fraction = self._plan, call.fraction
        nets = {unit.number for unit in self._units if unit.identity and net_window(unit.unit).active(fraction)}
        acting = nets | {unit.number for unit in self._units if unit.window.active(fraction)}
        plan.net_acted.update(nets)
        plan.acted.update(acting)
        if self._rescale is not None:
            self._rescale.note(call, acting)

    def check_loras(self, stop: bool, warn: Callable[[str], None]) -> None:
        """Where the UNet was called and the host did not apply a LoRA: raise UnsupportedHostStateError, or warn."""
        failure = self._loras.failure() if self._called else ""
        if failure and stop:
            raise UnsupportedHostStateError(failure)
        if failure:
            self._plan.loras.deny()
            warn(failure)

    def close(self, *, sampling: bool = False) -> None:
        """Remove all of it; `sampling` says that the pass goes on without."""
        self._scope.close()
        if self._rescale is not None:
            self._rescale.close()
        self._loras.close(sampling=sampling)
        self._plan.nets.leave()


def attach_pass(
    p: Any,
    unet: nn.Module,
    plan: PassPlan,
    read_call: ReadCall,
    warn: Callable[[str], None],
    canvas: Canvas | None = None,
    *,
    sampling: bool = False,
) -> PassAttachment:
    """Attach the units that fit `unet`; one that does not is off in this pass, and `warn` is told.

    `canvas` is the size that the pass samples, where it is known; units with a region or an IdentityNet need it.
    `sampling` says that the pass is under way already: the refiner came, or nobody announced it.
    """
    layers = find_cross_attention(unet)
    fitting: list[PreparedUnit] = []
    for unit in plan.units:
        try:
            check_pass(unet, layers, unit)
        except WrongBaseError as error:
            warn(f"Unit {unit.number} was off in a pass that it does not fit. {error}")
        else:
            fitting.append(unit)
    # Sums in floating point depend on their order: whichever unit comes first, the picture is the same to the last bit.
    fitting.sort(key=order_of_sums)
    masks = draw_masks(p, plan.units, fitting, canvas)
    plan.outside.update(number for number, mask in masks.items() if is_nowhere(mask))
    fitting = [unit for unit in fitting if not is_nowhere(masks.get(unit.number))]
    attentions = [
        UnitAttention(
            unit.name,
            dict(unit.kv),
            layer_weights(_layers_for(unit), layers, unit.unit.weight),
            unit.window,
            masks.get(unit.number),
        )
        for unit in fitting
    ]
    plan.attached.update(unit.number for unit in fitting)
    scope = AttachmentScope()
    try:
        nets = UNetResiduals(unet, plan.nets.enter(p, fitting, canvas, masks, sampling=sampling))
        scope = attach(unet, attentions, read_call, layers, companions=(nets, *plan.nets.alongside))
        loras = plan.loras.put_on(p, [unit.number for unit in fitting], sampling=sampling)
        # On the Forge family each of these three is a clone of the patcher before it, taken off in the other order.
        rescale = plan.rescale.put_on(p, fitting)
    except BaseException:
        scope.close()
        plan.nets.leave()
        raise
    return PassAttachment(unet, scope, plan, fitting, loras, rescale)


def _layers_for(unit: PreparedUnit) -> str:
    """The intent that chooses the layers: an adapter trained for composition alone acts on all of them."""
    intent = unit.unit.intent
    return "image" if intent == "composition" and unit.choice.spec.variant == "composition" else intent


def check_pass(unet: nn.Module, layers: Sequence[CrossAttentionLayer], unit: PreparedUnit) -> None:
    """Raises WrongBaseError when the unit's adapter is not for this UNet."""
    spec = unit.choice.spec
    check_fit(layers, spec)
    if unit.identity is not None:
        fit_to_unet(unit.identity.file.spec, unet, layers)
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
    return PassAttachment(unet, scope, plan, (), PassLoras(()))


def idle_sentences(plan: PassPlan) -> Iterator[str]:
    """Why units that were ready, or their IdentityNets, did not act in any step."""
    for unit in plan.units:
        if unit.number not in plan.acted:
            yield why_idle(unit, plan, with_lora=unit.number in plan.with_lora)
        elif unit.number in plan.with_net - plan.net_acted:
            yield _why_net_idle(unit)
        if unit.unit.cfg_rescale and unit.number in plan.acted - plan.rescale.ran:
            yield (
                f"CFG rescale of unit {unit.number} did nothing: no step in which the unit acts was guided. Raise the "
                "CFG scale above 1, or set the unit's CFG rescale to 0."
            )


def why_idle(prepared: PreparedUnit, plan: PassPlan, *, with_lora: bool = False) -> str:
    """Why a unit that was ready did not act in any step; its LoRA may have, which is on for a whole pass."""
    number, unit = prepared.number, prepared.unit
    if number in plan.outside:
        return (
            f"Unit {number} did not act: no part of its region, or of its face, lies in the part of the picture that "
            "was sampled. Move the region or the inpainting mask, or let the unit act everywhere."
        )
    if number not in plan.attached:
        return (
            f"Unit {number} did not act: {prepared.choice.name} fits a checkpoint of this job that no step was sampled "
            "with. Let the refiner switch earlier, or choose an adapter for the first checkpoint."
        )
    what = f"Of unit {number} only the LoRA acted" if with_lora else f"Unit {number} did not act"
    return (
        f"{what}: no step of this job lies between its start ({unit.start:g}) and its end ({unit.end:g}). Widen the "
        "range or use more steps."
    )


def _why_net_idle(prepared: PreparedUnit) -> str:
    number, unit = prepared.number, prepared.unit
    return (
        f"IdentityNet of unit {number} did not act: no step of this job lies between its start ({unit.net_start:g}) "
        f"and its end ({unit.net_end:g}). Widen the range or use more steps."
    )
