"""Getting at a step's guided prediction before the sampler does, on both kinds of host.

`Host.guide` gives one of these for a pass; `session.guidance` says what becomes of the prediction.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.guidance import still_noise, still_picture

Rescale = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the guided prediction, that of the prompt alone, and what a prediction is where v is 0: the one to go on with."""

_COMBINING = ("combine_denoised", "combine_denoised_for_edit_model")


class Guidance(Protocol):
    """A hold on the guided predictions of a pass."""

    def begin_step(self, params: Any) -> None:
        """Take the denoiser's parameters of the step that is about to call the UNet."""
        ...

    def remove(self) -> None:
        """Let go and leave everything as it was found; safe to call twice."""
        ...


class CombiningGuidance:
    """A1111: the denoiser's own methods that combine the rows' predictions, wrapped on the instance.

    Source: modules/sd_samplers_cfg_denoiser.py, CFGDenoiser. They run before the kept part of an inpainted picture is
    put back, as `on_cfg_after_cfg` does not, and are told the weights of AND's prompts, as `on_cfg_denoised` is not.
    """

    def __init__(self, rescale: Rescale) -> None:
        self._rescale: Rescale | None = rescale
        self._params: Any = None
        self._placed: dict[str, tuple[Any, Any]] = {}
        self._denoiser: Any = None

    def begin_step(self, params: Any) -> None:
        self._params = params
        if params.denoiser is self._denoiser:
            return
        self._unwrap()
        self._denoiser = params.denoiser
        for name in _COMBINING:
            self._wrap(name)

    def remove(self) -> None:
        self._rescale = self._params = None
        self._unwrap()

    def _wrap(self, name: str) -> None:
        inner = getattr(self._denoiser, name)
        edits = name != _COMBINING[0]

        def combine(x_out: Tensor, *args: Any) -> Tensor:
            guided = inner(x_out, *args)
            if not edits and args[-1] == 1.0:
                return guided  # at a scale of 1 the prompt's prediction is what comes out
            cond = x_out.chunk(3)[0] if edits else _unguided(x_out, *args)
            return self._rescaled(guided, cond)

        self._placed[name] = (self._denoiser.__dict__.get(name), combine)
        self._denoiser.__dict__[name] = combine

    def _unwrap(self) -> None:
        """Where another extension has wrapped ours since, it stays and does nothing."""
        for name, (earlier, combine) in self._placed.items():
            held = self._denoiser.__dict__
            if held.get(name) is not combine:
                continue
            if earlier is None:
                del held[name]
            else:
                held[name] = earlier
        self._placed, self._denoiser = {}, None

    def _rescaled(self, guided: Tensor, cond: Tensor) -> Tensor:
        params, rescale = self._params, self._rescale
        if rescale is None:
            return guided
        rows = guided.shape[0]
        noisy, level = params.x[-rows:], params.sigma[-rows:]
        # What the samplers of timesteps (DDIM, PLMS, UniPC) call sigma is a timestep, and their predictions are noise.
        kept = getattr(params.denoiser, "alphas", None)
        still = still_picture(noisy, level) if kept is None else still_noise(noisy, kept[level.to(torch.int64)])
        return rescale(guided, cond, still)


class SamplingGuidance:
    """The Forge family: a function of a clone of the job's UNet patcher, called after guidance.

    Source: backend/sampling/sampling_function.py, sampling_function_inner; on reForge and Classic ldm_patched/modules/
    samplers.py. Predictions are of the picture there, for DDIM too.
    """

    def __init__(self, sd_model: Any, rescale: Rescale) -> None:
        # Weak, so that a checkpoint that another one replaces is not kept in memory.
        self._model = weakref.ref(sd_model)
        self._rescale: Rescale | None = rescale
        self._earlier = sd_model.forge_objects.unet
        self._clone = self._earlier.clone()

        # No method: clones of the clone copy what a method is bound to.
        def guide(args: dict[str, Any]) -> Tensor:
            return self._guide(args)

        self._clone.set_model_sampler_post_cfg_function(guide)
        sd_model.forge_objects.unet = self._clone

    def begin_step(self, params: Any) -> None:
        """The function is told all that it needs."""

    def remove(self) -> None:
        """What another script has cloned of the clone goes with its job; until then its function does nothing."""
        self._rescale = None
        model, clone, earlier = self._model(), self._clone, self._earlier
        self._clone = self._earlier = None
        if model is not None and clone is not None and model.forge_objects.unet is clone:
            model.forge_objects.unet = earlier

    def _guide(self, args: dict[str, Any]) -> Tensor:
        guided, cond, uncond = args["denoised"], args["cond_denoised"], args["uncond_denoised"]
        if self._rescale is None or uncond is None:
            return guided
        strength = sum(one.get("strength", 1.0) for one in args["cond"])
        if strength != 1.0:
            # AND: the prompts' mean, and the sum of their weights, which the host multiplies the scale with.
            cond = uncond + (cond - uncond) * strength
        return self._rescale(guided, cond, still_picture(args["input"], args["sigma"]))


def _unguided(x_out: Tensor, composition: Any, uncond: Any, _scale: float) -> Tensor:
    """What A1111 combines at a scale of 1: for one prompt its own prediction, for AND their weighted sum."""
    base = x_out[-uncond.shape[0] :]
    found = base.clone()
    for place, parts in enumerate(composition):
        for row, weight in parts:
            found[place] += (x_out[row] - base[place]) * weight
    return found
