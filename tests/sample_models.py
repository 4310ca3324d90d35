"""Small model files that fit a given checkpoint: adapters with random weights, and an encoder that feeds them.

Used by the demo, the stand-in's tests and the e2e tests; `python -m tests.sample_models CHECKPOINT FOLDER` writes them
for a real host's checkpoint. Names, keys and containers are the published ones, sizes are not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from lib_ipadapter.library.headers import read_header
from lib_ipadapter.library.spec import Kind
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder

HIDDEN, PROJECTED = 128, 96
PATCH, POSITIONS = 14, 65
"""A tower for 112-pixel squares: 8 x 8 patches and the class token."""

_ATTN2 = re.compile(r"(?:.*\.)?(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)"
                    r"\.attn2\.(to_q|to_k)\.weight")  # fmt: skip
_SECTIONS = ("input_blocks", "output_blocks", "middle_block")
SUFFIXES = {768: "sd15", 1024: "sd21", 2048: "sdxl"}


def cross_attentions(checkpoint: Path) -> tuple[list[int], int]:
    """Widths of a checkpoint's cross-attentions in key order (down, up, middle) and the width of its context."""
    found: dict[tuple[int, int, int], int] = {}
    context = 0
    for name, info in read_header(checkpoint, lenient=True).tensors.items():
        match = _ATTN2.fullmatch(name)
        if match and match[4] == "to_q":
            found[_SECTIONS.index(match[1]), int(match[2]), int(match[3])] = info.shape[0]
        elif match:
            context = info.shape[1]
    return [found[place] for place in sorted(found)], context


def write_sample_models(checkpoint: Path, folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write a base adapter (safetensors), a plus adapter (nested .bin) and their encoder; returns what was written."""
    widths, context = cross_attentions(checkpoint)
    suffix = SUFFIXES[context]
    folder.mkdir(parents=True, exist_ok=True)
    encoder = folder / "sample-vision-encoder.safetensors"
    if not encoder.exists():
        save_vision_encoder(
            encoder,
            random_vision_encoder_tensors(
                HIDDEN, 2, mlp=2 * HIDDEN, patch=PATCH, positions=POSITIONS, projected=PROJECTED, seed=seed
            ),
        )
    kinds: Mapping[Kind, dict[str, int]] = {
        "base": {"input_dim": PROJECTED, "tokens": 4},
        "plus": {"input_dim": HIDDEN, "tokens": 16, "dim": 128, "heads": 2, "depth": 2},
    }
    written = {"encoder": encoder}
    for number, (kind, sizes) in enumerate(kinds.items()):
        tensors = random_adapter_tensors(kind, context, widths, seed=seed + 10 * number, **sizes)
        name = f"ip-adapter_{suffix}.safetensors" if kind == "base" else f"ip-adapter-plus_{suffix}.bin"
        written[kind] = save_adapter(folder / name, tensors, "flat" if kind == "base" else "nested-bin")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for what, path in write_sample_models(options.checkpoint, options.folder).items():
        print(f"{what}: {path}")
