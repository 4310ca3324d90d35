"""Small model files that fit a given checkpoint: adapters with random weights, and the encoder and face pack that feed
them.

Used by the demo, the stand-in's tests and the e2e tests; `python -m tests.sample_models CHECKPOINT FOLDER` writes them
for a real host's checkpoint. Names, keys and containers are the published ones, sizes are not.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lib_ipadapter.library.face_packs import PackName
from lib_ipadapter.library.headers import read_header
from lib_ipadapter.library.spec import ControlNetSpec, Kind
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.core.random_controlnets import as_published, random_controlnet, save_controlnet
from tests.encoders.face_models import write_face_pack
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder

HIDDEN, PROJECTED = 128, 96
PATCH, POSITIONS = 14, 65
"""A tower for 112-pixel squares: 8 x 8 patches and the class token."""

_ATTN2 = re.compile(r"(?:.*\.)?(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)"
                    r"\.attn2\.(to_q|to_k)\.weight")  # fmt: skip
_SECTIONS = ("input_blocks", "output_blocks", "middle_block")
_FIRST = "input_blocks.0.0.weight"
_BLOCK = re.compile(r"(input_blocks\.\d+|middle_block)\.1\.transformer_blocks\.(\d+)\.")
SUFFIXES = {768: "sd15", 1024: "sd21", 2048: "sdxl"}


LORA_RANK = 4
FACE_PACKS: tuple[PackName, ...] = ("buffalo_l", "antelopev2")
KINDS: dict[Kind, tuple[str, dict[str, int]]] = {
    "base": ("ip-adapter_{}.safetensors", {"input_dim": PROJECTED, "tokens": 4}),
    "plus": ("ip-adapter-plus_{}.bin", {"input_dim": HIDDEN, "tokens": 16, "dim": 128, "heads": 2, "depth": 2}),
    "faceid": ("ip-adapter-faceid_{}.bin", {"lora_rank": LORA_RANK}),
    "faceid_plus_v2": (
        "ip-adapter-faceid-plusv2_{}.bin", {"input_dim": HIDDEN, "heads": 2, "depth": 1, "lora_rank": LORA_RANK}
    ),
    "instantid": ("ip-adapter_instant_id_{}.safetensors", {"tokens": 16, "dim": 128, "heads": 2, "depth": 1}),
}
"""Each kind's file name, for a checkpoint's suffix, and its sizes."""
IDENTITY_NET = "control_instant_id_{}.safetensors"


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
    """Write adapters for pictures and for faces, their encoder and face packs; returns what was written.

    Base (safetensors), plus, FaceID and FaceID Plus v2 (nested .bin, the last two with their LoRA inside), and both
    halves of InstantID. The packs find and tell apart the faces that `tests.encoders.face_pictures` draws.
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
    net = identity_net_of(checkpoint)
    path = folder / IDENTITY_NET.format(SUFFIXES[context])
    written["identity_net"] = save_controlnet(path, as_published(net, random_controlnet(net, seed)))
    for name in FACE_PACKS:
        written[name] = folder / name
        if not written[name].exists():
            write_face_pack(written[name], name, seed)
    return written


def identity_net_of(checkpoint: Path) -> ControlNetSpec:
    """The ControlNet whose sizes are those of a checkpoint's UNet, with a hint picture's way cut short."""
    tensors = read_header(checkpoint, lenient=True).tensors
    prefix = next(name for name in tensors if name.endswith(_FIRST)).removesuffix(_FIRST)
    shapes = {name.removeprefix(prefix): info.shape for name, info in tensors.items() if name.startswith(prefix)}
    depth: dict[str, int] = {}
    for name in shapes:
        match = _BLOCK.match(name)
        if match:
            depth[match[1]] = max(depth.get(match[1], 0), int(match[2]) + 1)
    first = shapes[_FIRST][0]
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    levels = [number for number in range(9) if f"input_blocks.{3 * number + 1}.0.in_layers.2.weight" in shapes]
    channels = tuple(shapes[f"input_blocks.{3 * number + 1}.0.out_layers.3.weight"][0] for number in levels)
    label = shapes.get("label_emb.0.0.weight")
    return ControlNetSpec(
        "diffusers",
        context,
        channels,
        tuple(depth.get(f"input_blocks.{3 * number + 1}", 0) for number in levels),
        depth.get("middle_block", 0),
        tuple(8 if context == 768 else max(1, channel // 64) for channel in channels),
        label[1] if label else 0,
        hint_widths=(16, 32, 96, 256) if first == 320 else (8, 8, 16, 32),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for what, path in write_sample_models(options.checkpoint, options.folder).items():
        print(f"{what}: {path}")
