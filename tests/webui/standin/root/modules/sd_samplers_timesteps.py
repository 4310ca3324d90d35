"""Samplers that work with timesteps: what the denoiser gets as sigma is a timestep, what it gives is noise."""

from __future__ import annotations

import torch
from modules import sd_sampling_loops as loops
from modules import shared
from modules.latent_model import alphas_cumprod
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from modules.sd_samplers_common import Sampler, SamplerData, setup_img2img_steps
from modules.shared import opts

from tests.webui.standin import launching


class TimestepModel(torch.nn.Module):
    """A model called with timesteps; its answer is the noise."""

    def __init__(self, model):
        super().__init__()
        object.__setattr__(self, "inner_model", model)

    def forward(self, x, timesteps, cond):
        """The predicted noise."""
        return self.inner_model.apply_model(x, timesteps, cond)


class CFGDenoiserTimesteps(CFGDenoiser):
    """The denoiser over `TimestepModel`."""

    def __init__(self, sampler):
        super().__init__(sampler)
        self.alphas = alphas_cumprod()
        self.mask_before_denoising = True
        self.classic_ddim_eps_estimation = True

    @property
    def inner_model(self):
        """The loaded model behind its timesteps; made again after a checkpoint switch."""
        if self.model_wrap is None:
            self.model_wrap = TimestepModel(shared.sd_model)
        return self.model_wrap

    def get_pred_x0(self, x_in, x_out, sigma):
        """The predicted picture's latent, from the predicted noise."""
        abar = self.alphas[sigma.long()][:, None, None, None]
        return (x_in - (1 - abar).sqrt() * x_out) / abar.sqrt()


class CompVisSampler(Sampler):
    """DDIM."""

    def __init__(self, funcname, sd_model):
        super().__init__(funcname)
        self.func = getattr(loops, funcname)
        self.model_wrap_cfg = CFGDenoiserTimesteps(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_timesteps(self, p, steps: int):
        """Equally spaced timesteps, ascending."""
        return torch.clip(torch.arange(0, 1000, 1000 // steps) + 1, 0, 999)

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        """From noise."""
        steps = steps or p.steps
        return self._run(p, x, x, self.get_timesteps(p, steps), steps, conditioning, unconditional_conditioning,
                         image_conditioning)

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None,
                       image_conditioning=None):
        """From a latent with noise on it."""
        steps, t_enc = setup_img2img_steps(p, steps)
        timesteps = self.get_timesteps(p, steps)
        abar = alphas_cumprod()[timesteps[t_enc]]
        self.model_wrap_cfg.init_latent = x
        return self._run(p, x * abar.sqrt() + noise * (1 - abar).sqrt(), x, timesteps[:t_enc], t_enc + 1,
                         conditioning, unconditional_conditioning, image_conditioning)

    def _run(self, p, xi, last, timesteps, steps, conditioning, unconditional_conditioning, image_conditioning):
        self.initialize(p)
        self.last_latent = last
        if launching.is_forge():
            shared.sd_model.prepare_sampling(xi)
        self.set_arguments(p, conditioning, unconditional_conditioning, image_conditioning)
        return self.launch_sampling(steps, lambda: self.func(
            self.model_wrap_cfg, xi, timesteps, alphas_cumprod(), extra_args=self.sampler_extra_args,
            callback=self.callback_state, noise=self.step_noise, eta=opts.eta_ddim))


samplers_data_timesteps = [
    SamplerData("DDIM", lambda model: CompVisSampler("sample_ddim", model), ["ddim"], {}),
]
