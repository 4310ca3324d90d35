"""Sampling loops, from their papers' formulas.

Euler and Heun: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn. Ancestral steps: DDPM's posterior in
sigma terms (arXiv 2006.11239). DPM++ 2M: Lu et al. 2022 (arXiv 2211.01095), algorithm 2. DDIM: Song et al. 2020
(arXiv 2010.02502), equation 12. DPM adaptive: DPM-Solver-1 with the second order as error estimate (arXiv 2206.00927).
"""

from __future__ import annotations

import torch


def _slope(x, sigma, denoised):
    return (x - denoised) / sigma


def _ancestral(sigma_from, sigma_to, eta: float):
    """Sigma to step down to, and the noise to add, for an ancestral step."""
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def sample_euler(model, x, sigmas, extra_args, callback, noise):
    """First order."""
    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "x": x, "denoised": denoised})
        x = x + _slope(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
    return x


def sample_euler_ancestral(model, x, sigmas, extra_args, callback, noise, eta=1.0):
    """First order, with fresh noise in each step."""
    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "x": x, "denoised": denoised})
        down, up = _ancestral(float(sigmas[i]), float(sigmas[i + 1]), eta)
        x = x + _slope(x, sigmas[i], denoised) * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + noise() * up
    return x


def sample_heun(model, x, sigmas, extra_args, callback, noise):
    """Second order: two calls per step, one in the last."""
    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "x": x, "denoised": denoised})
        slope = _slope(x, sigmas[i], denoised)
        dt = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] > 0:
            ahead = x + slope * dt
            slope = (slope + _slope(ahead, sigmas[i + 1], model(ahead, sigmas[i + 1] * ones, **extra_args))) / 2
        x = x + slope * dt
    return x


def sample_dpmpp_2m(model, x, sigmas, extra_args, callback, noise):
    """Second order with the previous step's prediction: one call per step."""
    ones = x.new_ones([x.shape[0]])
    previous, h_last = None, None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "x": x, "denoised": denoised})
        if sigmas[i + 1] == 0:
            return denoised
        h = (sigmas[i] / sigmas[i + 1]).log()
        d = denoised
        if previous is not None:
            r = h_last / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * d
        previous, h_last = denoised, h
    return x


def sample_dpm_adaptive(model, x, sigma_min, sigma_max, extra_args, callback, noise, tolerance=0.3, first_step=1.0):
    """Steps in log sigma as large as the error allows: nobody knows the number of calls beforehand."""
    ones = x.new_ones([x.shape[0]])
    t, t_end = -torch.as_tensor(float(sigma_max)).log(), -torch.as_tensor(float(sigma_min)).log()
    h, i = torch.as_tensor(first_step), 0
    while t < t_end - 1e-5:
        h = torch.minimum(h, t_end - t)
        sigma, middle, ahead = (-t).exp(), (-(t + h / 2)).exp(), (-(t + h)).exp()
        denoised = model(x, sigma * ones, **extra_args)
        callback({"i": i, "x": x, "denoised": denoised})
        half = x - sigma * (1 - middle / sigma) * _slope(x, sigma, denoised)
        second = model(half, middle * ones, **extra_args)
        low = x + (ahead - sigma) * _slope(x, sigma, denoised)
        high = x + (ahead - sigma) * _slope(half, middle, second)
        error = float((low - high).pow(2).mean().sqrt() / (high.pow(2).mean().sqrt() * tolerance + 1e-6))
        if error <= 1 or float(h) < 0.05:
            x, t = high, t + h
        h = torch.as_tensor(float(h) * min(2.0, max(0.3, 0.9 / max(error, 1e-3) ** 0.5)))
        i += 1
    return x


def sample_ddim(model, x, timesteps, alphas_cumprod, extra_args, callback, noise, eta=0.0):
    """DDIM; the second argument of the model is a timestep, and it predicts the noise."""
    ones = x.new_ones([x.shape[0]])
    alphas = alphas_cumprod[timesteps]
    previous = alphas_cumprod[torch.cat([timesteps.new_zeros(1), timesteps[:-1]])]
    for i in range(len(timesteps) - 1):
        index = len(timesteps) - 1 - i
        a, a_prev = alphas[index], previous[index]
        eps = model(x, timesteps[index].item() * ones, **extra_args)
        spread = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
        pred_x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = a_prev**0.5 * pred_x0 + (1 - a_prev - spread**2) ** 0.5 * eps
        if eta:
            x = x + spread * noise()
        callback({"i": i, "x": x, "denoised": pred_x0})
    return x
