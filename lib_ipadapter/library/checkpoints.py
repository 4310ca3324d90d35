"""A full checkpoint's base from its header, for a hires or refiner checkpoint that is not loaded yet.

`session` asks before sampling; `detection` uses the same count to name a checkpoint lying in an adapter folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from .errors import AdapterFileError
from .headers import read_header
from .spec import TensorInfo

CheckpointBase = Literal["SD1", "SD2", "SDXL", ""]
_BASES: dict[tuple[int, int], CheckpointBase] = {
    (768, 16): "SD1",
    (1024, 16): "SD2",
    (2048, 70): "SDXL",
}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_CROSS = re.compile(r"^(?:input_blocks|middle_block|output_blocks)\..*\.attn2\.to_k\.weight$")


class CheckpointInfo(NamedTuple):
    """What a checkpoint's UNet is. `base` is "" when context width and layer count are no known pair.

    `layers` counts cross-attentions, `context_dim` is their context's width, `in_channels` the latent's (9 for
    inpainting, 8 for InstructPix2Pix).
    """

    base: CheckpointBase
    context_dim: int
    layers: int
    in_channels: int


def checkpoint_base(path: Path) -> CheckpointInfo | None:
    """Read a checkpoint's base from its header; None when it is no ldm UNet or its header cannot be read.

    Pickled checkpoints are looked at leniently (objects in them are skipped, nothing is executed).
    """
    try:
        header = read_header(path, lenient=True)
    except AdapterFileError:
        return None
    return describe_checkpoint(header.tensors)


def describe_checkpoint(tensors: Mapping[str, TensorInfo]) -> CheckpointInfo | None:
    """Describe the ldm UNet among a file's tensors, None when there is none."""
    for wrapper in ("", "state_dict."):
        for prefix in _PREFIXES:
            found = _unet(tensors, wrapper + prefix)
            if found is not None:
                return found
    return None


def _unet(tensors: Mapping[str, TensorInfo], prefix: str) -> CheckpointInfo | None:
    first = tensors.get(f"{prefix}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4 or f"{prefix}out.2.weight" not in tensors:
        return None
    cross = [
        info.shape for name, info in tensors.items() if name.startswith(prefix) and _CROSS.match(name[len(prefix) :])
    ]
    widths = {shape[1] for shape in cross if len(shape) == 2}
    context_dim = widths.pop() if len(widths) == 1 else 0
    base = _BASES.get((context_dim, len(cross)), "")
    return CheckpointInfo(base, context_dim, len(cross), first.shape[1])
