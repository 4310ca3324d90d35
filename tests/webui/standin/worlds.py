"""Writing the stand-in's checkpoints: small safetensors files with a real checkpoint's keys."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.webui.standin.nets import PREFIX, UNetShape, build_unet

KINDS = {
    "sd15": UNetShape("sd15", 32, 4, 768),
    "sd15-inpainting": UNetShape("sd15", 32, 9, 768),
    "sd15-instruct-pix2pix": UNetShape("sd15", 32, 8, 768),
    "sd21": UNetShape("sd2", 32, 4, 1024),
    "sdxl": UNetShape("sdxl", 32, 4, 2048, 2816),
}
"""Checkpoints by name."""

_TEXT_KEYS = {"sd15": ("cond_stage_model.transformer.text_model.final_layer_norm.weight", 768),
              "sd2": ("cond_stage_model.model.ln_final.weight", 1024),
              "sdxl": ("conditioner.embedders.1.model.ln_final.weight", 1280)}


def write_checkpoint(path: Path, kind: str = "sd15", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of one of `KINDS` with seeded weights; returns `path`.

    One key of each other part is in it, so that it looks like a whole checkpoint to whoever reads its header.
    """
    shape = KINDS[kind]
    state = build_unet(shape, seed).state_dict()
    tensors = {PREFIX + key: value.to(dtype).contiguous() for key, value in state.items()}
    tensors["first_stage_model.post_quant_conv.weight"] = torch.zeros(4, 4, 1, 1, dtype=dtype)
    name, width = _TEXT_KEYS[shape.kind]
    tensors[name] = torch.ones(width, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))
    return path
