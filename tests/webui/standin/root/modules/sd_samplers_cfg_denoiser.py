"""One denoiser step with guidance: which rows go to the UNet in which call.

The sequence of UNet calls is the host's: one call with all cond rows and then all uncond rows; separate calls when
batching is off or when the prompts differ in length; cond rows alone when a step skips the uncond.
"""

from __future__ import annotations

import torch
from modules import shared
from modules.prompt_parser import DictWithShape, reconstruct_cond_batch, reconstruct_multicond_batch
from modules.script_base import MaskBlendArgs
from modules.script_callbacks import (
    AfterCFGCallbackParams,
    CFGDenoisedParams,
    CFGDenoiserParams,
    cfg_after_cfg_callback,
    cfg_denoised_callback,
    cfg_denoiser_callback,
)
from modules.sd_samplers_common import InterruptedException, apply_refiner, catenate_conds, store_latent, subscript_cond
from modules.shared import opts, state

from tests.webui.standin import launching


class CFGDenoiserBase(torch.nn.Module):
    """What both hosts' denoisers carry."""

    def __init__(self, sampler):
        super().__init__()
        self.model_wrap = None
        self.mask = self.nmask = self.init_latent = None
        self.steps = None
        self.total_steps = None
        self.step = 0
        self.image_cfg_scale = None
        self.padded_cond_uncond = False
        self.padded_cond_uncond_v0 = False
        self.sampler = sampler
        self.p = None
        self.mask_before_denoising = False

    @property
    def inner_model(self):
        """The model as the sampler sees it."""
        raise NotImplementedError

    def update_inner_model(self) -> None:
        """The checkpoint was switched in mid-job."""
        self.model_wrap = None
        cond, uncond = self.p.get_conds()
        self.sampler.sampler_extra_args["cond"] = cond
        self.sampler.sampler_extra_args["uncond"] = uncond

    def skips_uncond(self, sigma, s_min_uncond: float) -> bool:
        """Whether this step leaves the uncond rows out (Skip Early CFG, NGMS)."""
        if opts.skip_early_cond != 0 and self.step / self.total_steps <= opts.skip_early_cond:
            self.p.extra_generation_params["Skip Early CFG"] = opts.skip_early_cond
            return True
        if (self.step % 2 or opts.s_min_uncond_all) and s_min_uncond > 0 and sigma[0] < s_min_uncond:
            self.p.extra_generation_params["NGMS"] = s_min_uncond
            return True
        return False

    def blend(self, latent, sigma):
        """Put the kept part of the picture back; scripts may change the result."""
        blended = latent * self.nmask + self.init_latent * self.mask
        if self.p.scripts is not None:
            mba = MaskBlendArgs(latent, self.nmask, self.init_latent, self.mask, blended, self, sigma)
            self.p.scripts.on_mask_blend(self.p, mba)
            blended = mba.blended_latent
        return blended

    def after_cfg(self, denoised):
        """The last callback of a step, and its count."""
        store_latent(denoised)
        params = AfterCFGCallbackParams(denoised, state.sampling_step, state.sampling_steps)
        cfg_after_cfg_callback(params)
        self.step += 1
        return params.x


class CFGDenoiserA1111(CFGDenoiserBase):
    """A1111's step."""

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        """Guided prediction for `x` `(b, 4, h, w)` at `sigma` `(b,)`."""
        if state.interrupted or state.skipped:
            raise InterruptedException
        if apply_refiner(self, sigma):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        is_edit = shared.sd_model.cond_stage_key == "edit" and self.image_cfg_scale not in (None, 1.0)
        conds_list, tensor = reconstruct_multicond_batch(cond, self.step)
        uncond = reconstruct_cond_batch(uncond, self.step)
        if self.mask_before_denoising and self.mask is not None:
            x = self.blend(x, sigma)
        repeats = torch.tensor([len(parts) for parts in conds_list])
        tails = 2 if is_edit else 1
        images = [image_cond, torch.zeros_like(self.init_latent)] if is_edit else [image_cond]
        params = CFGDenoiserParams(
            torch.cat([x.repeat_interleave(repeats, 0), *[x] * tails]),
            torch.cat([image_cond.repeat_interleave(repeats, 0), *images]),
            torch.cat([sigma.repeat_interleave(repeats, 0), *[sigma] * tails]),
            state.sampling_step, state.sampling_steps, tensor, uncond, self)
        cfg_denoiser_callback(params)
        skip = not is_edit and self.skips_uncond(sigma, s_min_uncond)
        x_out, uncond = self._predict(params, len(conds_list), skip, is_edit)
        firsts = [parts[0][0] for parts in conds_list]
        if skip:  # where the uncond prediction would be, the cond one stands
            x_out = torch.cat([x_out, x_out[firsts]])
        denoised_params = CFGDenoisedParams(x_out, state.sampling_step, state.sampling_steps, self.inner_model)
        cfg_denoised_callback(denoised_params)
        if is_edit:
            denoised = self.combine_denoised_for_edit_model(x_out, cond_scale)
        else:
            denoised = self.combine_denoised(x_out, conds_list, uncond, 1.0 if skip else cond_scale)
        if not self.mask_before_denoising and self.mask is not None:
            denoised = self.blend(denoised, sigma)
        self.sampler.last_latent = self.get_pred_x0(x, x_out[firsts], sigma)
        return self.after_cfg(denoised)

    def get_pred_x0(self, x_in, x_out, sigma):
        """The predicted picture's latent."""
        return x_out

    def combine_denoised(self, x_out, conds_list, uncond, cond_scale):
        """uncond + scale * sum of weighted differences, per picture."""
        base = x_out[-uncond.shape[0]:]
        denoised = base.clone()
        for i, parts in enumerate(conds_list):
            for index, weight in parts:
                denoised[i] += (x_out[index] - base[i]) * (weight * cond_scale)
        return denoised

    def combine_denoised_for_edit_model(self, x_out, cond_scale):
        """Guidance by text and by picture."""
        # InstructPix2Pix (arXiv 2211.09800), equation 3; rows are cond, image only, neither.
        cond, image, neither = x_out.chunk(3)
        return neither + cond_scale * (cond - image) + self.image_cfg_scale * (image - neither)

    def _predict(self, params, batch: int, skip: bool, is_edit: bool):
        """The UNet calls of this step; returns all rows' predictions and the uncond that was used."""
        x, sigma, image, tensor, uncond = params.x, params.sigma, params.image_cond, params.text_cond, \
            params.text_uncond
        if skip:
            x, sigma = x[:-batch], sigma[:-batch]
        tensor, uncond = self._pad(tensor, uncond)
        if skip:
            rows = tensor
        elif tensor.shape[1] == uncond.shape[1]:
            rows = catenate_conds([tensor, uncond, uncond] if is_edit else [tensor, uncond])
        else:
            return self._predict_unequal(params, tensor, uncond, batch, is_edit), uncond
        size = x.shape[0] if opts.batch_cond_uncond else batch
        out = [self._call(x, sigma, rows, image, a, a + size) for a in range(0, x.shape[0], size)]
        return torch.cat(out), uncond

    def _predict_unequal(self, params, tensor, uncond, batch: int, is_edit: bool):
        if is_edit:
            raise TypeError("prompts of different lengths cannot be used with an InstructPix2Pix checkpoint")
        x, sigma, image = params.x, params.sigma, params.image_cond
        size = batch * 2 if opts.batch_cond_uncond else batch
        n = tensor.shape[0]
        out = [self._call(x[:n], sigma[:n], tensor, image[:n], a, min(a + size, n)) for a in range(0, n, size)]
        out.append(self._call(x[n:], sigma[n:], uncond, image[n:], 0, uncond.shape[0]))
        return torch.cat(out)

    def _call(self, x, sigma, rows, image, a: int, b: int):
        rows = subscript_cond(rows, a, b)
        cond = dict(rows) if isinstance(rows, dict) else {"c_crossattn": [rows]}
        cond["c_concat"] = [image[a:b]]
        return self.inner_model(x[a:b], sigma[a:b], cond=cond)

    def _pad(self, tensor, uncond):
        self.padded_cond_uncond = self.padded_cond_uncond_v0 = False
        if tensor.shape[1] == uncond.shape[1]:
            return tensor, uncond
        if opts.pad_cond_uncond_v0:
            self.padded_cond_uncond_v0 = True
            return tensor, _pad_v0(uncond, tensor.shape[1])
        if opts.pad_cond_uncond:
            self.padded_cond_uncond = True
            empty = shared.sd_model.cond_stage_model_empty_prompt
            longest = max(tensor.shape[1], uncond.shape[1])
            return _pad_empty(tensor, longest, empty), _pad_empty(uncond, longest, empty)
        return tensor, uncond


def _with_rows(cond, rows):
    return DictWithShape({**cond, "crossattn": rows}) if isinstance(cond, dict) else rows


def _pad_v0(uncond, length: int):
    """Repeat the last vector, or cut, to the cond's length."""
    rows = uncond["crossattn"] if isinstance(uncond, dict) else uncond
    if rows.shape[1] < length:
        rows = torch.cat([rows, rows[:, -1:].repeat(1, length - rows.shape[1], 1)], dim=1)
    return _with_rows(uncond, rows[:, :length])


def _pad_empty(cond, length: int, empty):
    """Append the empty prompt's rows until the length is reached."""
    rows = cond["crossattn"] if isinstance(cond, dict) else cond
    missing = (length - rows.shape[1]) // empty.shape[1]
    if missing > 0:
        rows = torch.cat([rows, empty.repeat(rows.shape[0], missing, 1)], dim=1)
    return _with_rows(cond, rows)


if launching.is_forge():
    from modules.cfg_denoiser_forge import CFGDenoiserForge as CFGDenoiser
else:
    CFGDenoiser = CFGDenoiserA1111
