"""Forge's step: the callback sees one row per picture, and `on_cfg_denoised` is never fired."""

from __future__ import annotations

import torch
from backend.sampling.sampling_function import sampling_function
from modules import shared
from modules.prompt_parser import reconstruct_cond_batch, reconstruct_multicond_batch
from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback
from modules.sd_samplers_cfg_denoiser import CFGDenoiserBase
from modules.sd_samplers_common import InterruptedException, apply_refiner
from modules.shared import state


class CFGDenoiserForge(CFGDenoiserBase):
    """`classic_ddim_eps_estimation`: the sampler gives timesteps and wants noise, the model works with sigmas."""

    classic_ddim_eps_estimation = False

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        """Guided prediction for `x` `(b, 4, h, w)` at `sigma` `(b,)`."""
        if state.interrupted or state.skipped:
            raise InterruptedException
        if self.classic_ddim_eps_estimation:
            sigma = shared.sd_model.forge_objects.unet.model.predictor.sigmas[sigma.long()]
            x = x * ((sigma**2 + 1) ** 0.5)[:, None, None, None]
        if apply_refiner(self, None):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
            shared.sd_model.prepare_sampling(x)
        composition, cond = reconstruct_multicond_batch(cond, self.step)
        uncond = reconstruct_cond_batch(uncond, self.step) if uncond is not None else None
        if self.mask is not None:
            predictor = shared.sd_model.forge_objects.unet.model.predictor
            noise = torch.randn(self.init_latent.shape, generator=torch.Generator().manual_seed(self.step))
            kept = predictor.noise_scaling(sigma[:, None, None, None], noise, self.init_latent)
            x = x * self.nmask + kept * self.mask
        params = CFGDenoiserParams(x, image_cond, sigma, state.sampling_step, state.sampling_steps, cond, uncond, self)
        cfg_denoiser_callback(params)
        if self.p.is_hr_pass:
            cond_scale = self.p.hr_cfg
        if self.skips_uncond(sigma, s_min_uncond):
            cond_scale = 1.0
        denoised, _, _ = sampling_function(shared.sd_model.forge_objects.unet, params, cond_scale, composition)
        if self.mask is not None:
            denoised = self.blend(denoised, sigma)
        self.sampler.last_latent = denoised
        denoised = self.after_cfg(denoised)
        if self.classic_ddim_eps_estimation:
            return (x - denoised) / sigma[:, None, None, None]
        return denoised
