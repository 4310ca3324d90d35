"""Small vision-encoder files with real key names and seeded random weights, in every layout that circulates.

Tests, the demo and the stand-in host use them where a published encoder would be too large. Only sizes are invented:
a 1280-wide tower of two layers satisfies every adapter that wants ViT-H's hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.library.spec import VisionEncoderSpec

FileLayout = Literal["transformers", "transformers_full", "open_clip", "open_clip_full"]
"""`_full` files also hold the text tower and the logit scale, as published; transformers' old .bin files also hold
position_ids. The others are the vision part alone (`vision_model.` and `visual.` names)."""


def random_vision_encoder_tensors(
    hidden: int,
    depth: int,
    heads: int | None = None,
    mlp: int | None = None,
    *,
    patch: int = 14,
    positions: int = 257,
    projected: int = 1024,
    seed: int = 0,
    layout: FileLayout = "transformers",
) -> dict[str, Tensor]:
    """A file's tensors, float32. `heads` shows in no shape and is only checked; `mlp` is 4 * hidden by default.

    The same sizes and seed give the same network in every layout. `projected` 0 leaves the projection out.
    """
    if hidden % (heads or max(1, hidden // 64)):
        raise ValueError(f"{hidden} channels do not divide into {heads} heads.")
    generator = torch.Generator().manual_seed(seed)
    sizes = {"patch": patch, "positions": positions, "projected": projected}
    tensors = dict(_transformers(generator, hidden, depth, mlp or 4 * hidden, **sizes))
    if layout.startswith("open_clip"):
        tensors = _as_open_clip(tensors, depth)
    if layout == "transformers_full":
        tensors |= {
            "logit_scale": torch.tensor(4.6),
            "text_projection.weight": torch.randn(8, 8, generator=generator),
            "text_model.embeddings.token_embedding.weight": torch.randn(16, 8, generator=generator),
            "text_model.embeddings.position_ids": torch.arange(7)[None],
            "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.randn(8, 8, generator=generator),
            "vision_model.embeddings.position_ids": torch.arange(positions)[None],
        }
    if layout == "open_clip_full":
        tensors |= {
            "logit_scale": torch.tensor(4.6),
            "positional_embedding": torch.randn(7, 8, generator=generator),
            "text_projection": torch.randn(8, 8, generator=generator),
            "token_embedding.weight": torch.randn(16, 8, generator=generator),
            "transformer.resblocks.0.attn.in_proj_weight": torch.randn(24, 8, generator=generator),
        }
    return tensors


def save_vision_encoder(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors as safetensors or, for any other suffix, as a zip pickle; integers keep their type."""
    stored = {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    if path.suffix == ".safetensors":
        save_file(stored, path)
    else:
        torch.save(stored, path)


def vision_encoder_spec(
    hidden: int,
    depth: int,
    heads: int | None = None,
    mlp: int | None = None,
    *,
    patch: int = 14,
    positions: int = 257,
    projected: int = 1024,
    layout: FileLayout = "transformers",
    activation: Literal["gelu", "quick_gelu"] = "gelu",
) -> VisionEncoderSpec:
    """The description of such a file, said from the sizes rather than detected."""
    return VisionEncoderSpec(
        name=f"random-{hidden}x{depth}",
        layout="open_clip" if layout.startswith("open_clip") else "transformers",
        hidden_dim=hidden,
        depth=depth,
        heads=heads or max(1, hidden // 64),
        mlp_dim=mlp or 4 * hidden,
        patch=patch,
        positions=positions,
        projected_dim=projected,
        activation=activation,
    )


def _transformers(
    generator: torch.Generator, hidden: int, depth: int, mlp: int, *, patch: int, positions: int, projected: int
) -> Iterator[tuple[str, Tensor]]:
    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def norm(name: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", 1 + normal(hidden, scale=0.1)
        yield f"{name}.bias", normal(hidden, scale=0.1)

    def linear(name: str, width_in: int, width_out: int) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", normal(width_out, width_in, scale=width_in**-0.5)
        yield f"{name}.bias", normal(width_out, scale=0.1)

    embeddings = "vision_model.embeddings"
    yield f"{embeddings}.class_embedding", normal(hidden, scale=1)
    yield f"{embeddings}.patch_embedding.weight", normal(hidden, 3, patch, patch, scale=(3 * patch * patch) ** -0.5)
    yield f"{embeddings}.position_embedding.weight", normal(positions, hidden, scale=0.5)
    yield from norm("vision_model.pre_layrnorm")
    for index in range(depth):
        layer = f"vision_model.encoder.layers.{index}"
        yield from norm(f"{layer}.layer_norm1")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}", hidden, hidden)
        yield from norm(f"{layer}.layer_norm2")
        yield from linear(f"{layer}.mlp.fc1", hidden, mlp)
        yield from linear(f"{layer}.mlp.fc2", mlp, hidden)
    yield from norm("vision_model.post_layernorm")
    if projected:
        yield "visual_projection.weight", normal(projected, hidden, scale=hidden**-0.5)


def _as_open_clip(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The same network as open_clip writes it: one in_proj matrix, the projection transposed."""
    embeddings = "vision_model.embeddings"
    stored = {
        "visual.class_embedding": tensors[f"{embeddings}.class_embedding"],
        "visual.positional_embedding": tensors[f"{embeddings}.position_embedding.weight"],
        "visual.conv1.weight": tensors[f"{embeddings}.patch_embedding.weight"],
    }
    if "visual_projection.weight" in tensors:
        stored["visual.proj"] = tensors["visual_projection.weight"].T.contiguous()
    for part in ("weight", "bias"):
        stored[f"visual.ln_pre.{part}"] = tensors[f"vision_model.pre_layrnorm.{part}"]
        stored[f"visual.ln_post.{part}"] = tensors[f"vision_model.post_layernorm.{part}"]
        for index in range(depth):
            source, target = f"vision_model.encoder.layers.{index}", f"visual.transformer.resblocks.{index}"
            qkv = [tensors[f"{source}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            stored[f"{target}.attn.in_proj_{part}"] = torch.cat(qkv)
            stored[f"{target}.attn.out_proj.{part}"] = tensors[f"{source}.self_attn.out_proj.{part}"]
            stored[f"{target}.ln_1.{part}"] = tensors[f"{source}.layer_norm1.{part}"]
            stored[f"{target}.ln_2.{part}"] = tensors[f"{source}.layer_norm2.{part}"]
            stored[f"{target}.mlp.c_fc.{part}"] = tensors[f"{source}.mlp.fc1.{part}"]
            stored[f"{target}.mlp.c_proj.{part}"] = tensors[f"{source}.mlp.fc2.{part}"]
    return stored
