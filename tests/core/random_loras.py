"""FaceID adapters with a random LoRA inside, and the companion files that hold the same LoRA under kohya's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.core.lora import lora_modules
from lib_ipadapter.library.spec import Base
from tests.core.random_adapters import random_adapter_tensors

RANK = 4


def faceid_tensors(context_dim: int, widths: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float16,
                   rank: int = RANK) -> dict[str, Tensor]:  # fmt: skip
    """A FaceID adapter by official name, its LoRA and all else in `dtype`."""
    tensors = random_adapter_tensors("faceid", context_dim, widths, lora_rank=rank, seed=seed)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def companion_tensors(tensors: Mapping[str, Tensor], base: Base, alpha: float | None = None) -> dict[str, Tensor]:
    """The LoRA of an adapter's tensors under the names of its companion file."""
    modules = lora_modules(base)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "_lora." not in name:
            continue
        _, number, part, way, _ = name.split(".")
        place = part.removesuffix("_lora").replace("to_out", "to_out_0")
        module = f"{modules[int(number)]}_{place}"
        found[f"{module}.lora_{way}.weight"] = tensor.clone()
        if alpha is not None:
            found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


def save_companion(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), str(path))
    return path
