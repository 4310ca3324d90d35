"""What all samplers share: options, the refiner switch, noise in img2img, interrupting."""

from __future__ import annotations

from collections import namedtuple

import torch
from modules import prompt_parser, sd_models, shared
from modules.shared import opts, state

SamplerDataTuple = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


class SamplerData(SamplerDataTuple):
    """One entry of the sampler list."""

    def total_steps(self, steps: int) -> int:
        """Expected number of UNet steps: twice the steps for second-order samplers."""
        return steps * 2 if self.options.get("second_order") else steps


class InterruptedException(BaseException):
    """Raised between two steps when the job was interrupted."""


def setup_img2img_steps(p, steps=None) -> tuple[int, int]:
    """Steps of the whole schedule, and the index of the step that img2img starts at."""
    if opts.img2img_fix_steps or steps is not None:
        requested = steps or p.steps
        whole = int(requested / min(p.denoising_strength, 0.999)) if p.denoising_strength > 0 else 0
        return whole, requested - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


def store_latent(latent) -> None:
    """The live preview's picture."""
    state.current_latent = latent


def _completed_ratio(denoiser, sigma) -> float:
    if opts.refiner_switch_by_sample_steps or sigma is None:
        return denoiser.step / denoiser.total_steps
    inner = denoiser.inner_model
    if hasattr(inner, "sigmas"):
        timestep = int(torch.argmin(torch.abs(inner.sigmas - torch.max(sigma))))
    else:  # DDIM: sigma is a timestep
        timestep = int(torch.max(sigma))
    return (999 - timestep) / 1000


def apply_refiner(denoiser, sigma=None) -> bool:
    """Switch to the refiner's checkpoint when it is time; no script callback is fired for it."""
    p = denoiser.p
    info = p.refiner_checkpoint_info
    if p.refiner_switch_at is None or _completed_ratio(denoiser, sigma) < p.refiner_switch_at:
        return False
    if info is None or shared.sd_model.sd_checkpoint_info.filename == info.filename:
        return False
    if getattr(p, "enable_hr", False):
        wanted = {"first pass": False, "second pass": True}.get(opts.hires_fix_refiner_pass)
        if wanted is not None and wanted != p.is_hr_pass:
            return False
    p.extra_generation_params["Refiner"] = info.short_title
    p.extra_generation_params["Refiner switch at"] = p.refiner_switch_at
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=info)
    p.setup_conds()
    denoiser.update_inner_model()
    return True


class Sampler:
    """One pass's sampler; `sample` starts from noise, `sample_img2img` from a latent."""

    def __init__(self, funcname):
        self.funcname = funcname
        self.config: SamplerData | None = None
        self.last_latent = None
        self.s_min_uncond = 0.0
        self.conditioning_key = getattr(getattr(shared.sd_model, "model", None), "conditioning_key", "crossattn")
        self.p = None
        self.model_wrap_cfg = None
        self.model_wrap = None
        self.sampler_extra_args: dict[str, object] = {}

    def initialize(self, p) -> None:
        """Tie the denoiser to the job."""
        self.p = p
        cfg = self.model_wrap_cfg
        cfg.p = p
        cfg.mask, cfg.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        cfg.step = 0
        cfg.image_cfg_scale = getattr(p, "image_cfg_scale", None)
        self.s_min_uncond = p.s_min_uncond or 0.0

    def set_arguments(self, p, conditioning, unconditional_conditioning, image_conditioning) -> None:
        """What the denoiser is called with in each step."""
        self.sampler_extra_args = {"cond": conditioning, "image_cond": image_conditioning,
                                   "uncond": unconditional_conditioning, "cond_scale": p.cfg_scale,
                                   "s_min_uncond": self.s_min_uncond}

    def callback_state(self, d) -> None:
        """Called by the loop after the first call of each step."""
        state.sampling_step = d["i"]

    def launch_sampling(self, steps: int, func):
        """Run the loop; an interrupted one gives the last prediction."""
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        state.sampling_steps = steps
        state.sampling_step = 0
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def step_noise(self):
        """Fresh noise of one step, per picture."""
        return self.p.rng.next()


def catenate_conds(conds: list):
    """Rows one after the other."""
    if not isinstance(conds[0], dict):
        return torch.cat(conds)
    return prompt_parser.DictWithShape({key: torch.cat([c[key] for c in conds]) for key in conds[0]})


def subscript_cond(cond, a: int, b: int):
    """Rows a to b."""
    if not isinstance(cond, dict):
        return cond[a:b]
    return prompt_parser.DictWithShape({key: value[a:b] for key, value in cond.items()})
