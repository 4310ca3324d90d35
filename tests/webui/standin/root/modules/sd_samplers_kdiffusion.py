"""Samplers that work with sigmas."""

from __future__ import annotations

import torch
from modules import sd_sampling_loops as loops
from modules import shared
from modules.latent_model import alphas_cumprod
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from modules.sd_samplers_common import Sampler, SamplerData, setup_img2img_steps
from modules.shared import opts

from tests.webui.standin import launching


class SigmaSchedule(torch.nn.Module):
    """A model seen through its noise level: input scaling, and the timestep of a sigma (Karras et al., table 1, VE)."""

    def __init__(self, model):
        super().__init__()
        object.__setattr__(self, "inner_model", model)
        abar = alphas_cumprod()
        self.sigmas = ((1 - abar) / abar) ** 0.5
        self.log_sigmas = self.sigmas.log()

    def sigma_to_t(self, sigma):
        """Timestep of a sigma, interpolated in log sigma."""
        log_sigma = sigma.log().cpu()
        high = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        low_value, high_value = self.log_sigmas[high - 1], self.log_sigmas[high]
        fraction = ((log_sigma - low_value) / (high_value - low_value)).clamp(0, 1)
        return (high - 1 + fraction).to(sigma.device)

    def t_to_sigma(self, t):
        """Sigma of a timestep."""
        t = t.float()
        low = t.floor().long().clamp(0, 998)
        return ((1 - (t - low)) * self.log_sigmas[low] + (t - low) * self.log_sigmas[low + 1]).exp()

    def get_sigmas(self, n: int):
        """The default schedule: `n` equally spaced timesteps and a zero."""
        return torch.cat([self.t_to_sigma(torch.linspace(999, 0, n)), torch.zeros(1)])

    def forward(self, x, sigma, cond):
        """The predicted picture's latent."""
        scale = (sigma**2 + 1) ** -0.5
        eps = self.inner_model.apply_model(x * scale[:, None, None, None], self.sigma_to_t(sigma), cond)
        return x - eps * sigma[:, None, None, None]


class CFGDenoiserKDiffusion(CFGDenoiser):
    """The denoiser over `SigmaSchedule`."""

    @property
    def inner_model(self):
        """The loaded model behind its sigmas; made again after a checkpoint switch."""
        if self.model_wrap is None:
            self.model_wrap = SigmaSchedule(shared.sd_model)
        return self.model_wrap


class KDiffusionSampler(Sampler):
    """Euler, Heun, DPM++ and the adaptive one."""

    def __init__(self, funcname, sd_model, options=None):
        super().__init__(funcname)
        self.options = options or {}
        self.func = getattr(loops, funcname)
        self.model_wrap_cfg = CFGDenoiserKDiffusion(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps: int):
        """The schedule: Karras' for the samplers that default to it, the model's own for the others."""
        name = (getattr(p, "hr_scheduler", None) if p.is_hr_pass else p.scheduler) or "Automatic"
        if name.lower() == "karras" or (name == "Automatic" and self.options.get("scheduler") == "karras"):
            low, high = float(self.model_wrap.sigmas[0]) ** (1 / 7), float(self.model_wrap.sigmas[-1]) ** (1 / 7)
            sigmas = (high + torch.linspace(0, 1, steps) * (low - high)) ** 7
            p.extra_generation_params["Schedule type"] = "Karras"
            return torch.cat([sigmas, torch.zeros(1)])
        return self.model_wrap.get_sigmas(steps)

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        """From noise."""
        steps = steps or p.steps
        sigmas = self.get_sigmas(p, steps)
        return self._run(p, x * sigmas[0], x, sigmas, steps, conditioning, unconditional_conditioning,
                         image_conditioning)

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None,
                       image_conditioning=None):
        """From a latent with noise on it."""
        steps, t_enc = setup_img2img_steps(p, steps)
        sigmas = self.get_sigmas(p, steps)[steps - t_enc - 1:]
        self.model_wrap_cfg.init_latent = x
        return self._run(p, x + noise * sigmas[0], x, sigmas, t_enc + 1, conditioning, unconditional_conditioning,
                         image_conditioning)

    def _run(self, p, xi, last, sigmas, steps, conditioning, unconditional_conditioning, image_conditioning):
        self.initialize(p)
        self.last_latent = last
        if launching.is_forge():
            shared.sd_model.prepare_sampling(xi)
        self.set_arguments(p, conditioning, unconditional_conditioning, image_conditioning)
        keywords: dict[str, object] = {"extra_args": self.sampler_extra_args, "callback": self.callback_state,
                                       "noise": self.step_noise}
        if self.funcname == "sample_dpm_adaptive":
            keywords |= {"sigma_min": sigmas[-2], "sigma_max": sigmas[0]}
        else:
            keywords["sigmas"] = sigmas
        if self.funcname == "sample_euler_ancestral":
            keywords["eta"] = opts.eta_ancestral
        return self.launch_sampling(steps, lambda: self.func(self.model_wrap_cfg, xi, **keywords))


samplers_k_diffusion = [
    ("DPM++ 2M", "sample_dpmpp_2m", ["k_dpmpp_2m"], {"scheduler": "karras"}),
    ("Euler a", "sample_euler_ancestral", ["k_euler_a"], {"uses_ensd": True}),
    ("Euler", "sample_euler", ["k_euler"], {}),
    ("Heun", "sample_heun", ["k_heun"], {"second_order": True}),
    ("DPM adaptive", "sample_dpm_adaptive", ["k_dpm_ad"], {"uses_ensd": True}),
]


def _constructor(funcname: str, options: dict[str, object]):
    return lambda model: KDiffusionSampler(funcname, model, options)


samplers_data_k_diffusion = [SamplerData(label, _constructor(funcname, options), aliases, options)
                             for label, funcname, aliases, options in samplers_k_diffusion]
