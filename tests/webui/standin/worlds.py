"""Writing the stand-in's checkpoints: small safetensors files with a real checkpoint's keys."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.webui.standin.nets import PREFIX, UNetShape, build_unet, randomise

# name: (kind, in_channels, context width, vector width)
KINDS = {
    "sd15": UNetShape("sd15", 32, 4, 768, 4),
    "sd15-inpainting": UNetShape("sd15", 32, 9, 768, 4),
    "sd15-instruct-pix2pix": UNetShape("sd15", 32, 8, 768, 4),
    "sd21": UNetShape("sd15", 32, 4, 1024, 4),
    "sdxl": UNetShape("sdxl", 32, 4, 2048, 4, 2816),
}


def write_checkpoint(path: Path, kind: str = "sd15", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of one of `KINDS` with seeded weights; returns `path`."""
    shape = KINDS[kind]
    net = randomise(build_unet(shape), seed)
    tensors = {PREFIX + key: value.to(dtype).contiguous() for key, value in net.state_dict().items()}
    # One key of each other part, so that the file looks like a whole checkpoint to whoever reads its header.
    tensors["first_stage_model.post_quant_conv.weight"] = torch.zeros(4, 4, 1, 1, dtype=dtype)
    if shape.kind == "sdxl":
        tensors["conditioner.embedders.1.model.ln_final.weight"] = torch.ones(1280, dtype=dtype)
    elif shape.context_dim == 1024:
        tensors["cond_stage_model.model.ln_final.weight"] = torch.ones(1024, dtype=dtype)
    else:
        tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = torch.ones(768, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"standin.heads": str(shape.heads), "standin.kind": kind})
    return path
