"""The nets of the stand-in's checkpoints: the test UNets (real ldm blocks), sized from a checkpoint's keys and shapes.

Called by the host's model classes (loading) and by `worlds` (making checkpoints).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class UNetShape:
    """What has to be known to build a UNet; read from a checkpoint by `read_shape`."""

    kind: str  # "sd15", "sd2" or "sdxl"
    model_channels: int
    in_channels: int  # 4; 8 makes it InstructPix2Pix's, 9 an inpainting one
    context_dim: int
    label_dim: int = 0


def read_shape(shapes: dict[str, tuple[int, ...]]) -> UNetShape:
    """Shape of the UNet in a checkpoint, from `{key: shape}` with the `model.diffusion_model.` prefix."""
    first = shapes[PREFIX + "input_blocks.0.0.weight"]
    context = next(shape[1] for key, shape in shapes.items()
                   if key.startswith(PREFIX) and re.search(r"attn2\.to_k\.weight$", key))
    label = shapes.get(PREFIX + "label_emb.0.0.weight")
    kind = "sdxl" if label else "sd2" if context == 1024 else "sd15"
    return UNetShape(kind, first[0], first[1], context, label[1] if label else 0)


def build_unet(shape: UNetShape, seed: int = 0) -> nn.Module:
    """A test UNet of that shape with seeded weights."""
    from tests import unets

    if shape.kind == "sdxl":
        return unets.sdxl_unet(shape.model_channels, context_dim=shape.context_dim, in_channels=shape.in_channels,
                               label_dim=shape.label_dim, seed=seed)
    if shape.kind == "sd2":
        return unets.sd2_unet(shape.model_channels, in_channels=shape.in_channels, seed=seed)
    return unets.sd15_unet(shape.model_channels, context_dim=shape.context_dim, in_channels=shape.in_channels,
                           seed=seed)


def fit_odd_sizes() -> None:
    """Let ldm's UNet run at sizes that do not halve evenly, as the hosts do."""
    from ldm.modules.diffusionmodules import openaimodel

    from tests.unets import FittingCat

    openaimodel.th = FittingCat()
