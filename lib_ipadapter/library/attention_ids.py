"""Which cross-attention a key id stands for, by its place in diffusers' `attn_processors`; `naming` reads it.

Ids count attn1 (even) and attn2 (odd) of every transformer block in the order down, up, mid. Source: diffusers
`UNet2DConditionModel.attn_processors`, tencent-ailab/IP-Adapter `tutorial_train.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

Family = Literal["SD", "SDXL"]

# (block, attentions in it, transformer blocks in each attention), in id order
_DEPTHS: dict[Family, tuple[tuple[str, int, int], ...]] = {
    "SD": (
        ("down_blocks.0", 2, 1),
        ("down_blocks.1", 2, 1),
        ("down_blocks.2", 2, 1),
        ("up_blocks.1", 3, 1),
        ("up_blocks.2", 3, 1),
        ("up_blocks.3", 3, 1),
        ("mid_block", 1, 1),
    ),
    "SDXL": (
        ("down_blocks.1", 2, 2),
        ("down_blocks.2", 2, 10),
        ("up_blocks.0", 3, 10),
        ("up_blocks.1", 3, 2),
        ("mid_block", 1, 10),
    ),
}


@lru_cache(maxsize=2)
def attention_ids(family: Family) -> dict[str, int]:
    """Map `down_blocks.0.attentions.0.transformer_blocks.0.attn2` and its like to key ids.

    32 entries for "SD" (SD1 and SD2), 140 for "SDXL" (and Kolors).
    """
    ids: dict[str, int] = {}
    for block, attentions, depth in _DEPTHS[family]:
        for attention in range(attentions):
            for layer in range(depth):
                for part in ("attn1", "attn2"):
                    path = f"{block}.attentions.{attention}.transformer_blocks.{layer}.{part}"
                    ids[path] = len(ids)
    return ids


def cross_attention_ids(count: int) -> tuple[int, ...]:
    """The key ids of `count` cross-attentions: 1, 3, ... 2 * count - 1."""
    return tuple(range(1, 2 * count, 2))
