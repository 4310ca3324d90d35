"""Rescaling of guided predictions towards the prompt's own contrast, which a high guidance scale raises.

Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), section 3.4, for a
network that predicts v: with the predictions' standard deviations over each picture,

    v' = v_cfg * (amount * std(v_cond) / std(v_cfg) + 1 - amount)

diffusers' `rescale_noise_cfg` applies that to whatever the network predicts. Of one that predicts noise it makes less
noise than there is: at sigma 14.6, noise times 0.99 leaves 0.146 of noise in the predicted picture. So, as ComfyUI's
RescaleCFG does, every prediction is carried to v first: there the scaling acts on the picture where the noise is
strong, and on the noise where it is weak. With networks that predict v this is diffusers' formula.

`session.guidance` calls it in each step; `hosts` says what was predicted. Torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rescale_guidance(guided: Tensor, cond: Tensor, still: Tensor, amount: float) -> Tensor:
    """The guided prediction (b, c, h, w) with `amount` (0..1) of its excess over the prompt's contrast taken away.

    `guided` and `cond`, the prediction of the prompt alone, are both of the picture or both of the noise. `still` is
    what such a prediction is where v is 0: from there a prediction's distance is v times a number per picture, and the
    formula is homogeneous, so that v itself need not be computed. The result has `guided`'s dtype.
    """
    far, near, zero = guided.float(), cond.float(), still.float()
    spread = _deviation(far - zero)
    ratio = torch.where(spread > 0, _deviation(near - zero) / spread, torch.ones_like(spread))
    return (zero + (far - zero) * (amount * ratio + (1.0 - amount))).to(guided.dtype)


def still_picture(noisy: Tensor, sigma: Tensor) -> Tensor:
    """The picture predicted where v is 0, of `noisy` = picture + sigma * noise (b, c, h, w); sigma (b,).

    v = (noisy / (sigma^2 + 1) - picture) * sqrt(sigma^2 + 1) / sigma.
    """
    return noisy.float() / (sigma.float() ** 2 + 1)[:, None, None, None]


def still_noise(noisy: Tensor, kept: Tensor) -> Tensor:
    """The noise predicted where v is 0, of `noisy` = sqrt(kept) * picture + sqrt(1 - kept) * noise; kept (b,).

    `kept` is what the schedules call alphas_cumprod, at each row's timestep.

    v = (noise - sqrt(1 - kept) * noisy) / sqrt(kept).
    """
    return noisy.float() * (1 - kept.float()).sqrt()[:, None, None, None]


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation over each picture, (b, 1, 1, 1)."""
    return values.std(dim=(1, 2, 3), keepdim=True)
