"""Which adapter and encoder each unit uses, given the checkpoints that the job will run. Used by `session.job`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..core.identity_fit import fit_to_unet
from ..core.layers import CrossAttentionLayer, check_fit, find_cross_attention
from ..library.checkpoints import checkpoint_base
from ..library.errors import IPAdapterError, WrongBaseError
from ..library.spec import CONTEXT_WIDTHS, LAYER_COUNTS, ControlNetSpec
from ..units.unit import Unit
from .failures import as_named
from .identity_unit import wants_net
from .models import Choice
from .services import Services

Numbered = tuple[int, Unit]


def plan_units(
    p: Any,
    units: Sequence[Numbered],
    services: Services,
    failed: Callable[[int, IPAdapterError], None],
) -> Iterator[tuple[int, Unit, Choice]]:
    """Choose files for each unit; a unit that fits no checkpoint of the job is handed to `failed`.

    A second checkpoint (hires, refiner) is judged by its file's header, before anything is sampled. A unit that fits
    only some of the checkpoints runs in their passes; `passes.attach_pass` tells the user of the others.
    """
    unet = services.host.unet(p)
    layers = find_cross_attention(unet)
    bases = [base_of(unet, layers)]
    for later in services.host.later_checkpoints(p):
        info = checkpoint_base(later.path)
        if info is not None and info.base:
            bases.append(info.base)
    services.models.refresh()

    def fit(spec: ControlNetSpec) -> ControlNetSpec:
        return fit_to_unet(spec, unet, layers)

    for number, unit in units:
        try:
            choice = services.models.choose(unit.adapter, unit.intent, bases)
            is_loaded = choice.spec.base == bases[0]
            if is_loaded:
                check_fit(layers, choice.spec)
            if wants_net(unit, choice.spec):
                net = services.models.identity_net(unit.identity_net, choice, fit if is_loaded else None)
                choice = replace(choice, net=net)
        except Exception as error:
            failed(number, as_named(error, "The unit"))
            continue
        yield number, unit, choice


def loaded_base(p: Any, services: Services) -> str:
    """The base of the UNet that the job calls now. Raises: WrongBaseError."""
    unet = services.host.unet(p)
    return base_of(unet, find_cross_attention(unet))


def base_of(unet: nn.Module, layers: Sequence[CrossAttentionLayer]) -> str:
    """SD1, SD2, SDXL or Kolors by the UNet's structure.

    Kolors is SDXL's UNet with a projection in front of the context (`encoder_hid_proj`).

    Raises: WrongBaseError when the UNet is none of these (Flux, SD3, distilled SDXL).
    """
    if not layers:
        raise WrongBaseError(
            "The loaded checkpoint has no cross-attention layers (Flux, SD3 and the like), so there is nothing an "
            "IP-Adapter could act on. Load an SD1.5, SD2 or SDXL checkpoint."
        )
    width = layers[0].context_dim
    fitting = [base for base in CONTEXT_WIDTHS.get(width, ()) if LAYER_COUNTS[base] == len(layers)]
    if not fitting:
        raise WrongBaseError(
            f"The loaded checkpoint's UNet has {len(layers)} cross-attention layers for a text of width {width}, and "
            "adapters exist for 16 layers (SD1.5 768, SD2 1024) and 70 (SDXL 2048). Load such a checkpoint."
        )
    if len(fitting) > 1:
        return "Kolors" if getattr(unet, "encoder_hid_proj", None) is not None else "SDXL"
    return fitting[0]
