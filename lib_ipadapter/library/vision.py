"""CLIP vision towers from headers: every size comes from shapes, the published combinations get a name.

`detection` reports them, `files` finds one for an adapter, `encoders.clip_vision` builds it. Key layouts: transformers
`CLIPVisionModelWithProjection`, open_clip `VisionTransformer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .printable import shown
from .spec import TensorInfo, VisionEncoderSpec
from .verdicts import Verdict

# (hidden, depth, projected, positions) -> name; a file without its projection has projected 0
_NAMES = {
    (1280, 32, 1024, 257): "clip_h",
    (1664, 48, 1280, 257): "clip_g",
    (1024, 24, 768, 577): "clip_l_336",
    (1024, 24, 768, 257): "clip_l",
}
_NAMES |= {(hidden, depth, 0, positions): name for (hidden, depth, _, positions), name in list(_NAMES.items())}
_HEADS = {1280: 16, 1664: 16, 1024: 16}
_TITLES = {
    "clip_h": "CLIP ViT-H/14",
    "clip_g": "CLIP ViT-bigG/14",
    "clip_l_336": "CLIP ViT-L/14 at 336 px",
    "clip_l": "CLIP ViT-L/14",
}
_TRANSFORMERS_PATCH = "vision_model.embeddings.patch_embedding.weight"
_OPEN_CLIP_PATCH = "visual.conv1.weight"
_TRANSFORMERS_LAYER = (
    "layer_norm1.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.out_proj.weight", "layer_norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight",
)  # fmt: skip
_OPEN_CLIP_LAYER = (
    "ln_1.weight", "attn.in_proj_weight", "attn.out_proj.weight", "ln_2.weight", "mlp.c_fc.weight",
    "mlp.c_proj.weight",
)  # fmt: skip


def title(name: str) -> str:
    """The name people know an encoder by: "CLIP ViT-H/14" for clip_h."""
    return _TITLES.get(name, "a CLIP vision encoder")


def describe_vision(tensors: Mapping[str, TensorInfo]) -> VisionEncoderSpec | Verdict:
    """Size the vision tower in a file, whatever else the file holds.

    A Verdict says why there is none that can be used: another architecture, or a damaged one.
    """
    for patch, read in ((_TRANSFORMERS_PATCH, _transformers), (_OPEN_CLIP_PATCH, _open_clip)):
        name = next((n for n in tensors if n == patch or n.endswith("." + patch)), None)
        if name is not None:
            prefix = name[: -len(patch)]
            if len(tensors[name].shape) != 4:
                return _broken(f"{name} has shape {list(tensors[name].shape)}")
            return read(tensors, prefix)
    return Verdict("not_adapter", "Part of a vision model that is not CLIP's; it fits no IP-Adapter.")


def _broken(what: str) -> Verdict:
    # Names in it may begin with whatever precedes the tower's own names in the file.
    return Verdict(
        "unreadable", f"A damaged vision encoder: {shown(what, 300)}; download it again.", kind="vision_encoder"
    )


def _transformers(tensors: Mapping[str, TensorInfo], prefix: str) -> VisionEncoderSpec | Verdict:
    base = f"{prefix}vision_model."
    if f"{base}embeddings.class_embedding" not in tensors:
        return Verdict(
            "not_adapter",
            "A SigLIP vision encoder, which Flux and SD3.5 adapters use; no IP-Adapter here needs it.",
            kind="vision_encoder",
            variant="siglip",
        )
    layers = f"{base}encoder.layers."
    return _sized(
        tensors,
        layout="transformers",
        prefix=prefix,
        patch=f"{base}embeddings.patch_embedding.weight",
        positions=f"{base}embeddings.position_embedding.weight",
        layers=layers,
        layer_names=_TRANSFORMERS_LAYER,
        mlp="mlp.fc1.weight",
        needed=(f"{base}pre_layrnorm.weight", f"{base}post_layernorm.weight"),
        projection=(f"{prefix}visual_projection.weight", 0),
    )


def _open_clip(tensors: Mapping[str, TensorInfo], prefix: str) -> VisionEncoderSpec | Verdict:
    base = f"{prefix}visual."
    return _sized(
        tensors,
        layout="open_clip",
        prefix=prefix,
        patch=f"{base}conv1.weight",
        positions=f"{base}positional_embedding",
        layers=f"{base}transformer.resblocks.",
        layer_names=_OPEN_CLIP_LAYER,
        mlp="mlp.c_fc.weight",
        needed=(f"{base}class_embedding", f"{base}ln_pre.weight", f"{base}ln_post.weight"),
        projection=(f"{base}proj", 1),
    )


def _sized(  # noqa: PLR0911
    tensors: Mapping[str, TensorInfo],
    *,
    layout: str,
    prefix: str,
    patch: str,
    positions: str,
    layers: str,
    layer_names: tuple[str, ...],
    mlp: str,
    needed: tuple[str, ...],
    projection: tuple[str, int],
) -> VisionEncoderSpec | Verdict:
    for name in (positions, *needed):
        if name not in tensors:
            return _broken(f"it lacks {name}")
    pattern = re.compile(re.escape(layers) + r"(\d{1,3})\.")
    depth = len({match[1] for match in map(pattern.match, tensors) if match})
    if depth == 0:
        return _broken("it has no layers")
    for number in range(depth):
        for part in layer_names:
            if f"{layers}{number}.{part}" not in tensors:
                return _broken(f"it lacks {layers}{number}.{part}")
    hidden, _, side, _ = tensors[patch].shape
    count = tensors[positions].shape
    wide = tensors[f"{layers}0.{mlp}"].shape
    if len(count) != 2 or count[1] != hidden or len(wide) != 2 or wide[1] != hidden or side < 1:
        return _broken(f"its widths disagree ({hidden} in {patch}, {list(count)} in {positions})")
    projected = 0
    name, axis = projection
    if name in tensors:
        shape = tensors[name].shape
        if len(shape) != 2 or shape[1 - axis] != hidden:
            return _broken(f"{name} has shape {list(shape)} beside a width of {hidden}")
        projected = shape[axis]
    heads = _HEADS.get(hidden, hidden // 64)
    if heads < 1 or hidden % heads:
        return _broken(f"its width {hidden} does not divide into heads of 64")
    title_name = _NAMES.get((hidden, depth, projected, count[0]), "custom") if side == 14 else "custom"
    openai = hidden == 1024 and depth == 24 and projected in (0, 768)
    return VisionEncoderSpec(
        name=title_name,
        layout="open_clip" if layout == "open_clip" else "transformers",
        hidden_dim=hidden,
        depth=depth,
        heads=heads,
        mlp_dim=wide[0],
        patch=side,
        positions=count[0],
        projected_dim=projected,
        activation="quick_gelu" if openai else "gelu",
        prefix=prefix,
    )
