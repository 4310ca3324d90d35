"""The nets of the stand-in's checkpoints: real ldm UNets, sized from a checkpoint's keys and shapes.

Called by the host's `modules.latent_model` (loading) and by `worlds` (making checkpoints).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class UNetShape:
    """What has to be known to build a UNet; read from a checkpoint by `read_shape`."""

    kind: str  # "sd15" or "sdxl"; SD2 is an "sd15" of another context width
    model_channels: int
    in_channels: int
    context_dim: int
    heads: int
    adm: int = 0


def read_shape(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> UNetShape:
    """Shape of the UNet in a checkpoint, from `{key: shape}` with the `model.diffusion_model.` prefix."""
    first = shapes[PREFIX + "input_blocks.0.0.weight"]
    context = next(shape[1] for key, shape in shapes.items()
                   if key.startswith(PREFIX) and re.search(r"attn2\.to_k\.weight$", key))
    label = shapes.get(PREFIX + "label_emb.0.0.weight")
    heads = int((metadata or {}).get("standin.heads", "8"))
    return UNetShape("sdxl" if label else "sd15", first[0], first[1], context, heads, label[1] if label else 0)


def build_unet(shape: UNetShape) -> torch.nn.Module:
    """An ldm UNet of that shape with whatever weights its constructor gives."""
    if shape.kind == "sdxl":
        from tests import unets

        return unets.sdxl_unet(model_channels=shape.model_channels, context_dim=shape.context_dim,
                               in_channels=shape.in_channels, adm_in_channels=shape.adm)
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(image_size=32, in_channels=shape.in_channels, out_channels=4,
                     model_channels=shape.model_channels, attention_resolutions=[4, 2, 1], num_res_blocks=2,
                     channel_mult=(1, 2, 4, 4), num_heads=shape.heads, use_spatial_transformer=True,
                     transformer_depth=1, context_dim=shape.context_dim, use_checkpoint=False, legacy=False)


def randomise(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Seeded weights everywhere, the layers that ldm starts at zero included, so that each part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
    return net
