"""The LoRA of a FaceID adapter, under the names that every host's LoRA machinery reads. Called by `session.loras`.

FaceID was trained with a LoRA on all attention projections of the UNet. It lies inside the adapter's file, numbered as
the adapter's layers are, and was published a second time as a companion file with kohya's names. Here both become the
same record, and its digest says whether two of them are the same LoRA. What applies it is the host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..library.attention_ids import attention_ids
from ..library.errors import AdapterFileError
from ..library.spec import AdapterSpec, Base
from .checkpoint import read_tensors

_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out_0"}
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_COMPANION = re.compile(
    r"(lora_unet_(?:down_blocks_\d+|mid_block|up_blocks_\d+)_attentions_\d+_transformer_blocks_\d+_attn[12]_to_"
    r"(?:q|k|v|out_0))\.(?:lora_down\.weight|lora_up\.weight|alpha)"
)
_EARLY = re.compile(r"down_blocks_\d+_.*_(?:q|k|v|out)_proj\.lora_(?:down|up)\.weight")


@dataclass(frozen=True)
class FaceLora:
    """A LoRA of a UNet's attentions, on the CPU, in the dtype it is stored in.

    `weights` maps `lora_unet_<path in diffusers' UNet>.lora_down.weight` `(rank, in)`, `.lora_up.weight` `(out, rank)`
    and, where the file has one, `.alpha` (a scalar; without it the scale is 1). `digest` (64 hex digits) is of what it
    does: equal for the same weights inside an adapter and in its companion.
    """

    weights: dict[str, Tensor] = field(repr=False)
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take."""
        return sum(tensor.nbytes for tensor in self.weights.values())


def lora_modules(base: Base) -> dict[int, str]:
    """Map every attention's key id, attn1 (even) and attn2 (odd), to its part of a LoRA's names.

    `lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1` and its like: 32 for SD1 and SD2, 140 for SDXL.
    """
    ids = attention_ids("SD" if base in ("SD1", "SD2") else "SDXL")
    return {key_id: f"lora_unet_{path.replace('.', '_')}" for path, key_id in ids.items()}


def read_adapter_lora(spec: AdapterSpec, path: Path) -> FaceLora:
    """Read the LoRA inside a FaceID file; `spec.lora_rank` says that there is one.

    Source of the numbering: tencent-ailab/IP-Adapter, ip_adapter_faceid.py; it has no alpha, so its scale is 1.
    Raises: AdapterFileError when a tensor is missing or cannot be read.
    """
    wanted: dict[str, str] = {}
    for key_id, module in lora_modules(spec.base).items():
        for x, projection in _PROJECTIONS.items():
            for way, suffix in (("down", _DOWN), ("up", _UP)):
                official = f"ip_adapter.{key_id}.to_{x}_lora.{way}.weight"
                if official not in spec.tensors:
                    raise AdapterFileError(f"{path.name} lacks {official} of its LoRA: re-download it.")
                wanted[f"{module}_{projection}{suffix}"] = spec.tensors[official]
    return _record(path, read_tensors(path, wanted))


def read_companion_lora(path: Path, names: Collection[str]) -> FaceLora:
    """Read a companion file, whose tensors are called `names`.

    Raises: AdapterFileError when it is no LoRA of attentions alone, is incomplete, or is an early, broken upload.
    """
    early = [name for name in names if _EARLY.fullmatch(name)]
    if early:
        raise AdapterFileError(
            f"{path.name} is an early, broken upload of a FaceID LoRA: {len(early)} of its {len(names)} tensors are "
            f"named like {early[0]}, without lora_unet_. Download it again."
        )
    foreign = [name for name in names if not _COMPANION.fullmatch(name)]
    if foreign or not names:
        raise AdapterFileError(
            f"{path.name} is no FaceID LoRA: {len(foreign)} of its {len(names)} tensors are something else"
            f"{f' ({foreign[0][:80]})' if foreign else ''}. Choose the adapter's own companion."
        )
    return _record(path, read_tensors(path, {name: name for name in names}))


def same_shapes(lora: FaceLora, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with tensors of these names and shapes could hold the same LoRA; alphas are left out of it."""
    ours = {name: tuple(tensor.shape) for name, tensor in lora.weights.items() if not name.endswith(_ALPHA)}
    return ours == {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(_ALPHA)}


def _record(path: Path, weights: dict[str, Tensor]) -> FaceLora:
    modules = {name.removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)}
    halves = {name.removesuffix(_UP) for name in weights if name.endswith(_UP)}
    if modules != halves or not modules:
        raise AdapterFileError(
            f"{path.name} is incomplete: its LoRA has {len(modules)} lora_down and {len(halves)} lora_up tensors, and "
            f"{len(modules ^ halves)} have no partner. Download it again."
        )
    for module in sorted(modules):
        down, up = tuple(weights[module + _DOWN].shape), tuple(weights[module + _UP].shape)
        if len(down) != 2 or len(up) != 2 or up[1] != down[0]:
            raise AdapterFileError(
                f"{path.name}: {module} has lora_down {down} and lora_up {up}, which do not fit together. "
                "Download it again."
            )
    return FaceLora(weights, _digest(weights, sorted(modules)))


def _digest(weights: Mapping[str, Tensor], modules: Collection[str]) -> str:
    """sha256 over every module's name, scale, shapes and values in float16, which the published files are stored in.

    So the same LoRA stored in another dtype, or with an alpha that means a scale of 1, has the same digest.
    """
    digest = hashlib.sha256()
    for module in modules:
        down, up = weights[module + _DOWN], weights[module + _UP]
        alpha = weights.get(module + _ALPHA)
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        digest.update(f"{module} {scale:.6g} {tuple(down.shape)} {tuple(up.shape)}\n".encode())
        for tensor in (down, up):
            digest.update(cast(Any, tensor.to(torch.float16).flatten()).numpy())
    return digest.hexdigest()
