"""Features, image tokens and how several references become one token list. Used by `core.adapter` and `session`.

n counts references, T the tokens of one, T' the tokens that a layer sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Combination = Literal["concat", "average"]


@dataclass(frozen=True)
class Features:
    """What the encoders say about n references; an adapter picks what it was trained on.

    `pooled` (n, P): CLIP's projected `image_embeds`. `hidden` (n, L, H): CLIP's `hidden_states[-2]`.
    `face` (n, 512): the recognition embedding, normed or raw as the adapter's kind wants it.
    """

    pooled: Tensor | None = None
    hidden: Tensor | None = None
    face: Tensor | None = None


class ImageTokens(NamedTuple):
    """One unit's tokens for prompt rows and for negative rows, `(1, T', D)` each."""

    cond: Tensor
    uncond: Tensor


def combine_tokens(tokens: Tensor, how: Combination) -> Tensor:
    """Make one token list of n references' tokens: (n, T, D) -> (1, n*T, D) for "concat", (1, T, D) for "average".

    "concat" lets the attention choose between references (diffusers, InvokeAI), "average" is the mean of the projected
    tokens (sd-webui-controlnet, `ipadapter_model.py`).
    """
    if how == "average":
        return tokens.mean(dim=0, keepdim=True)
    return tokens.flatten(0, 1).unsqueeze(0)


def pair_tokens(cond: Tensor, uncond: Tensor | None, how: Combination) -> ImageTokens:
    """Combine (n, T, D) prompt tokens and their uncond, (n or 1, T, D), to lists of the same length.

    One uncond is repeated for every reference: the official pipelines have one per image, and the attention over n
    equal copies is the attention over one. None means zero tokens: their values are zero, so negative rows get no
    image attention at all.
    """
    combined = combine_tokens(cond, how)
    if uncond is None:
        return ImageTokens(combined, torch.zeros_like(combined))
    return ImageTokens(combined, combine_tokens(uncond.expand(cond.shape[0], -1, -1), how))
