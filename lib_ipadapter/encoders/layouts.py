"""How vision-tower files write their keys, and how each becomes transformers' names.

Called by `clip_vision.load_vision_encoder`. transformers' files correspond one to one. open_clip's keep query, key
and value in one matrix and the projection transposed (open_clip `transformer.py`: `ResidualAttentionBlock` holds a
`torch.nn.MultiheadAttention`, `VisionTransformer.forward` computes `pooled @ self.proj`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..library.spec import VisionEncoderSpec

_OUTER = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PARTS = ("weight", "bias")
_THIRDS = ("q_proj", "k_proj", "v_proj")
_PROJECTION = "visual_projection.weight"


def names_to_read(spec: VisionEncoderSpec) -> dict[str, str]:
    """Which stored tensors make the tower: the layout's own name -> the name in the file.

    `spec.prefix` precedes transformers' `vision_model.` or open_clip's `visual.` in the file (a wrapper's name; usually
    nothing). Everything else in the file (text tower, position_ids, logit_scale) is not read.
    """
    if spec.layout == "transformers":
        return {name: spec.prefix + name for name in _transformers_names(spec)}
    return {name: f"{spec.prefix}visual.{name}" for name in _open_clip_names(spec)}


def converted(spec: VisionEncoderSpec, stored: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Empty `stored` (keyed as `names_to_read`) and yield transformers' names with their tensors.

    It is emptied as it goes so that a caller that converts each tensor never holds the tower twice.
    """
    while stored:
        name, tensor = stored.popitem()
        if spec.layout == "transformers":
            yield name, tensor
        else:
            yield from _from_open_clip(name, tensor)


def _transformers_names(spec: VisionEncoderSpec) -> Iterator[str]:
    yield from _OUTER.values()
    for layer in range(spec.depth):
        stem = f"vision_model.encoder.layers.{layer}"
        for inner in (*_INNER.values(), *(f"self_attn.{third}" for third in _THIRDS)):
            yield from (f"{stem}.{inner}.{part}" for part in _PARTS)
    if spec.projected_dim:
        yield _PROJECTION


def _open_clip_names(spec: VisionEncoderSpec) -> Iterator[str]:
    yield from _OUTER
    for layer in range(spec.depth):
        stem = f"transformer.resblocks.{layer}"
        yield from (f"{stem}.attn.in_proj_{part}" for part in _PARTS)
        for inner in _INNER:
            yield from (f"{stem}.{inner}.{part}" for part in _PARTS)
    if spec.projected_dim:
        yield "proj"


def _from_open_clip(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name == "proj":
        yield _PROJECTION, tensor.t().contiguous()
        return
    if name in _OUTER:
        yield _OUTER[name], tensor
        return
    layer, inner = name.removeprefix("transformer.resblocks.").split(".", 1)
    stem = f"vision_model.encoder.layers.{layer}"
    if inner.startswith("attn.in_proj_"):
        part = inner.removeprefix("attn.in_proj_")
        for third, piece in zip(_THIRDS, tensor.tensor_split(3, dim=0), strict=True):
            yield f"{stem}.self_attn.{third}.{part}", piece
        return
    inner, part = inner.rsplit(".", 1)
    yield f"{stem}.{_INNER[inner]}.{part}", tensor
