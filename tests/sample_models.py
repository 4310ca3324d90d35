"""Small model files that fit a given checkpoint: adapters with random weights, and the encoder and face pack that feed
them.

Used by the demo, the stand-in's tests and the e2e tests; `python -m tests.sample_models CHECKPOINT FOLDER` writes them
for a real host's checkpoint. Names, keys and containers are the published ones, sizes are not.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lib_ipadapter.library.headers import read_header
from lib_ipadapter.library.spec import Kind
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.face_models import write_face_pack
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder

HIDDEN, PROJECTED = 128, 96
PATCH, POSITIONS = 14, 65
"""A tower for 112-pixel squares: 8 x 8 patches and the class token."""

_ATTN2 = re.compile(r"(?:.*\.)?(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)"
                    r"\.attn2\.(to_q|to_k)\.weight")  # fmt: skip
_SECTIONS = ("input_blocks", "output_blocks", "middle_block")
SUFFIXES = {768: "sd15", 1024: "sd21", 2048: "sdxl"}


LORA_RANK = 4
KINDS: dict[Kind, tuple[str, dict[str, int]]] = {
    "base": ("ip-adapter_{}.safetensors", {"input_dim": PROJECTED, "tokens": 4}),
    "plus": ("ip-adapter-plus_{}.bin", {"input_dim": HIDDEN, "tokens": 16, "dim": 128, "heads": 2, "depth": 2}),
    "faceid": ("ip-adapter-faceid_{}.bin", {"lora_rank": LORA_RANK}),
    "faceid_plus_v2": (
        "ip-adapter-faceid-plusv2_{}.bin", {"input_dim": HIDDEN, "heads": 2, "depth": 1, "lora_rank": LORA_RANK}
    ),
}
"""Each kind's file name, for a checkpoint's suffix, and its sizes."""


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
    """Write adapters for pictures and for faces, their encoder and a face pack; returns what was written.

    Base (safetensors), plus, FaceID and FaceID Plus v2 (nested .bin, the last two with their LoRA inside). The pack
    finds and tells apart the faces that `tests.encoders.face_pictures` draws.
    """
    widths, context = cross_attentions(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = folder / "sample-vision-encoder.safetensors"
    if not encoder.exists():
        save_vision_encoder(
            encoder,
            random_vision_encoder_tensors(
                HIDDEN, 2, mlp=2 * HIDDEN, patch=PATCH, positions=POSITIONS, projected=PROJECTED, seed=seed
            ),
        )
    written = {"encoder": encoder}
    for number, (kind, (name, sizes)) in enumerate(KINDS.items()):
        tensors = random_adapter_tensors(kind, context, widths, seed=seed + 10 * number, **sizes)
        if "lora_rank" in sizes:  # published in half precision, and large
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        path = folder / name.format(SUFFIXES[context])
        written[kind] = save_adapter(path, tensors, "flat" if path.suffix == ".safetensors" else "nested-bin")
    pack = folder / "buffalo_l"
    if not pack.exists():
        write_face_pack(pack, "buffalo_l", seed)
    return {**written, "pack": pack}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for what, path in write_sample_models(options.checkpoint, options.folder).items():
        print(f"{what}: {path}")
