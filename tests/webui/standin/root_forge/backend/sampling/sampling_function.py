"""One guided step on Forge: chunks of cond and uncond are gathered into as few UNet calls as fit.

Order and markers are Forge's: uncond chunks first (`cond_or_uncond` is [1, 0]), [1, 0, 0] with AND, [0] at CFG 1;
contexts of different lengths are repeated to their least common multiple unless that is more than four times one.
"""

from __future__ import annotations

import math

import torch
from backend import memory_management

COND, UNCOND = 0, 1


def _chunks(text_cond, composition, text_uncond):
    """`(conditioning, strengths, mark)` per chunk; one chunk has a row per picture."""
    rows = text_cond["crossattn"] if isinstance(text_cond, dict) else text_cond
    parts = max(len(picture) for picture in composition)
    found = []
    for part in range(parts):
        picked = [picture[min(part, len(picture) - 1)] for picture in composition]
        indexes = [index for index, _ in picked]
        strength = torch.tensor([weight if part < len(picture) else 0.0
                                 for (_, weight), picture in zip(picked, composition, strict=True)])
        found.append((_conditioning(text_cond, rows, indexes), strength, COND))
    if text_uncond is not None:
        rows = text_uncond["crossattn"] if isinstance(text_uncond, dict) else text_uncond
        found.append((_conditioning(text_uncond, rows, list(range(rows.shape[0]))), torch.ones(rows.shape[0]), UNCOND))
    return found


def _conditioning(cond, rows, indexes):
    out = {"c_crossattn": rows[indexes]}
    if isinstance(cond, dict):
        out["y"] = cond["vector"][indexes]
    return out


def _can_join(a, b) -> bool:
    if a.keys() != b.keys():
        return False
    first, second = a["c_crossattn"].shape[1], b["c_crossattn"].shape[1]
    return math.lcm(first, second) // min(first, second) <= 4


def _join(conds: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    length = math.lcm(*[c["c_crossattn"].shape[1] for c in conds])
    out = {"c_crossattn": torch.cat([c["c_crossattn"].repeat(1, length // c["c_crossattn"].shape[1], 1)
                                     for c in conds])}
    for key in conds[0].keys() - {"c_crossattn"}:
        out[key] = torch.cat([c[key] for c in conds])
    return out


def _pick(model, waiting, x) -> list[int]:
    """Indexes of the chunks of the next call, last first, as many as fit into the free memory."""
    joinable = [i for i, chunk in enumerate(waiting) if _can_join(chunk[0], waiting[0][0])][::-1]
    for divisor in range(1, len(joinable) + 1):
        batch = joinable[:len(joinable) // divisor]
        shape = [len(batch) * x.shape[0], *x.shape[1:]]
        if model.memory_required(shape) < memory_management.get_free_memory(x.device):
            return batch
    return joinable[:1]


def calc_cond_uncond_batch(model, chunks, x, sigma, image_cond, model_options, control=None):
    """Predictions `(cond, uncond)`, AND parts weighted and summed."""
    totals = [torch.zeros_like(x), torch.zeros_like(x)]
    counts = [torch.full_like(x, 1e-37), torch.full_like(x, 1e-37)]
    waiting = list(chunks)
    while waiting:
        batch = [waiting.pop(i) for i in _pick(model, waiting, x)]
        marks = [mark for _, _, mark in batch]
        options = dict(model_options.get("transformer_options", {}))
        options |= {"cond_or_uncond": marks[:], "sigmas": sigma,
                    "cond_mark": torch.tensor([m for m in marks for _ in range(x.shape[0])]).to(sigma),
                    "cond_indices": _indices(marks, x.shape[0], COND),
                    "uncond_indices": _indices(marks, x.shape[0], UNCOND)}
        c = _join([conditioning for conditioning, _, _ in batch])
        if image_cond is not None:
            c["c_concat"] = torch.cat([image_cond] * len(batch))
        c["transformer_options"] = options
        xs, sigmas = torch.cat([x] * len(batch)), torch.cat([sigma] * len(batch))
        if control is not None:
            link = control
            while link is not None:
                link.transformer_options, link = options, link.previous_controlnet
            c["control"] = control.get_control(xs, sigmas, dict(c), len(batch))
        wrapper = model_options.get("model_function_wrapper")
        if wrapper is not None:
            out = wrapper(model.apply_model, {"input": xs, "timestep": sigmas, "c": c, "cond_or_uncond": marks})
        else:
            out = model.apply_model(xs, sigmas, **c)
        for (_, strength, mark), rows in zip(batch, out.chunk(len(batch)), strict=True):
            weight = strength.to(x)[:, None, None, None]
            totals[mark] += rows * weight
            counts[mark] += weight
    return totals[COND] / counts[COND], totals[UNCOND] / counts[UNCOND]


def _indices(marks: list[int], size: int, wanted: int) -> list[int]:
    return [i * size + j for i, mark in enumerate(marks) if mark == wanted for j in range(size)]


def sampling_function(unet, params, cond_scale: float, composition):
    """Guided prediction of a step, with `(cond, uncond)` beside it."""
    model, options = unet.model, unet.model_options
    x, sigma = params.x, params.sigma
    uncond = params.text_uncond
    if math.isclose(cond_scale, 1.0) and not options.get("disable_cfg1_optimization", False):
        uncond = None
    image_cond = params.image_cond
    fits = isinstance(image_cond, torch.Tensor) and image_cond.shape[0] == x.shape[0] \
        and image_cond.shape[2:] == x.shape[2:]
    chunks = _chunks(params.text_cond, composition, uncond)
    cond_pred, uncond_pred = calc_cond_uncond_batch(model, chunks, x, sigma, image_cond if fits else None, options,
                                                   unet.controlnet_linked_list)
    strength = sum(weight for _, weight in composition[0])
    denoised = uncond_pred + (cond_pred - uncond_pred) * cond_scale * strength
    if uncond is None and not options.get("sampler_post_cfg_function"):
        return cond_pred, cond_pred, uncond_pred
    for function in options.get("sampler_post_cfg_function", []):
        # The negative is what the step came with, also where it was left out; its prediction is zeros then.
        denoised = function({"denoised": denoised, "cond": [{"strength": weight} for _, weight in composition[0]],
                             "uncond": params.text_uncond, "model": model, "uncond_denoised": uncond_pred,
                             "cond_denoised": cond_pred, "sigma": sigma, "model_options": options, "input": x})
    return denoised, cond_pred, uncond_pred
