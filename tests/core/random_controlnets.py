"""ControlNets with real names and seeded random weights, in both published layouts, for tests and the bench.

Unlike a fresh ControlNet, whose last convolutions are zero, every layer speaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.library.controlnets import controlnet_shapes
from lib_ipadapter.library.spec import ControlNetSpec

SD15 = ControlNetSpec("diffusers", 768, (320, 640, 1280, 1280), (1, 1, 1, 0), 1, (8, 8, 8, 8))
SDXL = ControlNetSpec("diffusers", 2048, (320, 640, 1280), (0, 2, 10), 10, (5, 10, 20), 2816)
"""The published sizes."""

_FIRST = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def narrow(spec: ControlNetSpec, width: int = 32, *, y_dim: int | None = None, depths: int = 10) -> ControlNetSpec:
    """The same net with `width` channels at the first level, heads as `tests.unets` has them, and shallower."""
    channels = tuple(channels * width // spec.channels[0] for channels in spec.channels)
    heads = tuple(8 if spec.context_dim == 768 else channel // 16 for channel in channels)
    return replace(
        spec,
        channels=channels,
        depths=tuple(min(depth, depths) for depth in spec.depths),
        mid_depth=min(spec.mid_depth, depths),
        heads=heads,
        y_dim=spec.y_dim if y_dim is None else y_dim,
        hint_widths=(8, 8, 16, 32),
    )


def random_controlnet(spec: ControlNetSpec, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor by diffusers' name, float32, scaled so that activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, shape in controlnet_shapes(spec).items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith(".bias"):
            found[name] = 0.1 * drawn
        elif len(shape) == 1:
            found[name] = 1 + 0.1 * drawn
        else:
            found[name] = drawn / math.prod(shape[1:]) ** 0.5
    return found


def as_published(spec: ControlNetSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' file: SD1.5 stores the projections around a transformer as 1x1 convolutions."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if spec.context_dim == 768 and name.endswith((".proj_in.weight", ".proj_out.weight")):
            found[name] = tensor[:, :, None, None]
    return found


def ldm_name(name: str) -> str:
    """ldm's name of a tensor, below `control_model.`."""
    stem, _, last = name.rpartition(".")
    parts = stem.split(".")
    for old, new in _FIRST.items():
        if stem == old or stem.startswith(old + "."):
            return f"{new}{_inside(stem[len(old) :])}.{last}"
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0.{last}"
    if parts[0] == "controlnet_cond_embedding":
        return f"input_hint_block.{2 * int(parts[2]) + 2}.{last}"
    level, kind, place = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{last}"
    child = 1 if kind == "attentions" else 0
    return f"input_blocks.{3 * level + 1 + place}.{child}{_inside('.' + '.'.join(parts[4:]))}.{last}"


def _inside(rest: str) -> str:
    return f".{_RESNET.get(rest[1:], rest[1:])}" if rest else ""


def ldm_controlnet(
    spec: ControlNetSpec, tensors: Mapping[str, Tensor], prefix: str = "control_model."
) -> dict[str, Tensor]:
    """The same weights as an ldm-layout file holds them."""
    return {prefix + ldm_name(name): tensor for name, tensor in as_published(spec, tensors).items()}


def save_controlnet(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a safetensors file, or a torch pickle where the name says so."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(contiguous, str(path))
    else:
        torch.save(contiguous, path)
    return path
