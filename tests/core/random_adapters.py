"""Adapter files with real key names and seeded random weights, in the published layouts.

Tests, the demo, the bench and the stand-in host use them where a published adapter would be too large. Only sizes are
invented; the defaults are the published ones of an SD1.5 file, so pass a small `dim` and narrow layers to be quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.library.spec import AdapterSpec, Base, Kind, ProjectorFamily, ProjectorSpec

Layout = Literal["flat", "nested-bin"]

SD1_WIDTHS = (320, 320, 640, 640, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3, 1280)
SDXL_WIDTHS = (*[640] * 4, *[1280] * 20, *[1280] * 30, *[640] * 6, *[1280] * 10)
"""Widths of the cross-attentions in key order (1, 3, 5, ...): down, up, middle."""

FAMILIES: dict[Kind, ProjectorFamily] = {
    "base": "linear",
    "plus": "resampler",
    "full_face": "full_face",
    "faceid": "face_mlp",
    "faceid_portrait": "face_mlp",
    "faceid_plus": "face_plus",
    "faceid_plus_v2": "face_plus",
    "faceid_portrait_unnorm": "resampler",
    "instantid": "resampler",
}
_FEATURES = {"linear": "pooled", "full_face": "hidden", "face_mlp": "face", "face_plus": "face_hidden"}
_RAW_FACE_KINDS = ("instantid", "faceid_portrait_unnorm")
_TOKENS: dict[Kind, int] = {"base": 4, "full_face": 257, "faceid": 4, "faceid_plus": 4, "faceid_plus_v2": 4}
_CLIP_HIDDEN = 1280


class _Weights:
    """Seeded tensors, scaled so that activations stay of order one."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def linear(self, name: str, out_width: int, in_width: int, *, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self._randn(out_width, in_width) / in_width**0.5
        if bias:
            self.tensors[f"{name}.bias"] = 0.1 * self._randn(out_width)

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.1 * self._randn(width)
        self.tensors[f"{name}.bias"] = 0.1 * self._randn(width)

    def latents(self, name: str, tokens: int, dim: int) -> None:
        self.tensors[name] = self._randn(1, tokens, dim) / dim**0.5

    def perceiver(self, prefix: str, spec: ProjectorSpec, input_dim: int) -> None:
        dim, heads = spec.dim, spec.heads
        self.linear(f"{prefix}proj_in", dim, input_dim)
        for n in range(spec.depth):
            attention, feed_forward = f"{prefix}layers.{n}.0", f"{prefix}layers.{n}.1"
            self.norm(f"{attention}.norm1", dim)
            self.norm(f"{attention}.norm2", dim)
            self.linear(f"{attention}.to_q", heads * 64, dim, bias=False)
            self.linear(f"{attention}.to_kv", 2 * heads * 64, dim, bias=False)
            self.linear(f"{attention}.to_out", dim, heads * 64, bias=False)
            self.norm(f"{feed_forward}.0", dim)
            self.linear(f"{feed_forward}.1", 4 * dim, dim, bias=False)
            self.linear(f"{feed_forward}.3", dim, 4 * dim, bias=False)
        self.linear(f"{prefix}proj_out", spec.output_dim, dim)
        self.norm(f"{prefix}norm_out", spec.output_dim)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def random_projector(spec: ProjectorSpec, seed: int = 0) -> dict[str, Tensor]:
    """A projector's tensors by official name without `image_proj.`, float32."""
    weights = _Weights(seed)
    tokens, input_dim, output_dim = spec.tokens, spec.input_dim, spec.output_dim
    if spec.family == "linear":
        weights.linear("proj", tokens * output_dim, input_dim)
        weights.norm("norm", output_dim)
    elif spec.family == "full_face":
        weights.linear("proj.0", input_dim, input_dim)
        weights.linear("proj.2", output_dim, input_dim)
        weights.norm("proj.3", output_dim)
    elif spec.family == "resampler":
        weights.latents("latents", tokens, spec.dim)
        weights.perceiver("", spec, input_dim)
    else:
        weights.linear("proj.0", 2 * input_dim, input_dim)
        weights.linear("proj.2", tokens * output_dim, 2 * input_dim)
        weights.norm("norm", output_dim)
        if spec.family == "face_plus":
            weights.perceiver("perceiver_resampler.", spec, spec.hidden_dim)
    return weights.tensors


def random_projector_spec(
    kind: Kind, context_dim: int, *, tokens: int = 0, input_dim: int = 0, dim: int = 0, heads: int = 0, depth: int = 0
) -> ProjectorSpec:
    """The described projector of a kind; 0 stands for the published size (`input_dim` is CLIP's hidden width for the
    FaceID-Plus kinds, whose face embedding is always 512 wide)."""
    family = FAMILIES[kind]
    tokens = tokens or _TOKENS.get(kind, 16)
    if family in ("linear", "full_face"):
        return ProjectorSpec(family, tokens, input_dim or (1024 if family == "linear" else _CLIP_HIDDEN), context_dim)
    if family == "face_mlp":
        return ProjectorSpec(family, tokens, input_dim or 512, context_dim)
    if family == "face_plus":
        clip = input_dim or _CLIP_HIDDEN
        return ProjectorSpec(
            family, tokens, 512, context_dim, clip, context_dim, heads or context_dim // 64, depth or 4
        )
    face_or_clip = 512 if kind in _RAW_FACE_KINDS else _CLIP_HIDDEN
    dim = dim or (1280 if context_dim == 2048 else context_dim)
    return ProjectorSpec(family, tokens, input_dim or face_or_clip, context_dim, 0, dim, heads or dim // 64, depth or 4)


def random_adapter_tensors(
    kind: Kind,
    context_dim: int = 768,
    layer_widths: Sequence[int] = SD1_WIDTHS,
    *,
    tokens: int = 0,
    input_dim: int = 0,
    dim: int = 0,
    heads: int = 0,
    depth: int = 0,
    lora_rank: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A whole adapter by official name (`image_proj.…`, `ip_adapter.1.to_k_ip.weight`), float32.

    `layer_widths` are the cross-attentions' in key order; `lora_rank` adds the LoRA that FaceID files carry.
    """
    spec = random_projector_spec(
        kind, context_dim, tokens=tokens, input_dim=input_dim, dim=dim, heads=heads, depth=depth
    )
    tensors = {f"image_proj.{name}": tensor for name, tensor in random_projector(spec, seed).items()}
    weights = _Weights(seed + 1)
    for index, width in enumerate(layer_widths):
        for x in "kv":
            weights.linear(f"ip_adapter.{2 * index + 1}.to_{x}_ip", width, context_dim, bias=False)
    for key_id in range(2 * len(layer_widths) if lora_rank else 0):
        width = layer_widths[key_id // 2]
        for x in ("q", "k", "v", "out"):
            in_width = context_dim if key_id % 2 and x in "kv" else width
            weights.linear(f"ip_adapter.{key_id}.to_{x}_lora.down", lora_rank, in_width, bias=False)
            weights.linear(f"ip_adapter.{key_id}.to_{x}_lora.up", width, lora_rank, bias=False)
    return tensors | weights.tensors


def describe_adapter(kind: Kind, tensors: Mapping[str, Tensor], *, base: Base = "SD1") -> AdapterSpec:
    """The `AdapterSpec` of tensors made here, read from their shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = {int(name.split(".")[1]): shape[0] for name, shape in shapes.items() if name.endswith("to_k_ip.weight")}
    context_dim = shapes["ip_adapter.1.to_k_ip.weight"][1]
    projector = _describe_projector(kind, {n.removeprefix("image_proj."): s for n, s in shapes.items()}, context_dim)
    feature = "face_raw" if kind in _RAW_FACE_KINDS else _FEATURES.get(projector.family, "hidden")
    faces = {"face": ("buffalo_l",), "face_hidden": ("buffalo_l", "clip_h"), "face_raw": ("antelopev2",)}
    return AdapterSpec(
        kind=kind,
        variant=kind,
        base=base,
        tokens=projector.tokens,
        encoders=faces.get(feature, ("clip_h",)),  # pyright: ignore[reportArgumentType]
        feature=feature,  # pyright: ignore[reportArgumentType]
        context_dim=context_dim,
        layers=layers,
        projector=projector,
        tensors={name: name for name in tensors},
    )


def _describe_projector(kind: Kind, shapes: Mapping[str, tuple[int, ...]], context_dim: int) -> ProjectorSpec:
    family = FAMILIES[kind]
    if family == "linear":
        rows, input_dim = shapes["proj.weight"]
        return ProjectorSpec(family, rows // context_dim, input_dim, context_dim)
    if family == "full_face":
        return ProjectorSpec(family, _TOKENS[kind], shapes["proj.0.weight"][1], context_dim)
    prefix = "perceiver_resampler." if family == "face_plus" else ""
    if family == "resampler":
        _, tokens, dim = shapes["latents"]
        spec = ProjectorSpec(family, tokens, shapes["proj_in.weight"][1], context_dim, dim=dim)
    else:
        spec = ProjectorSpec(family, shapes["proj.2.weight"][0] // context_dim, shapes["proj.0.weight"][1], context_dim)
    if family == "face_mlp":
        return spec
    dim, hidden_dim = shapes[f"{prefix}proj_in.weight"]
    heads = shapes[f"{prefix}layers.0.0.to_q.weight"][0] // 64
    depth = sum(name.startswith(f"{prefix}layers.") and name.endswith("to_q.weight") for name in shapes)
    return replace(spec, dim=dim, heads=heads, depth=depth, hidden_dim=hidden_dim if prefix else 0)


def save_adapter(path: Path, tensors: Mapping[str, Tensor], layout: Layout = "flat") -> Path:
    """Write an adapter file: "flat" safetensors, or "nested-bin", the published pickle whose tensors are all views of
    one flat storage."""
    if layout == "flat":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
        return path
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    storages = {dtype: _flat([t for t in tensors.values() if t.dtype == dtype]) for dtype in _dtypes(tensors)}
    offsets = dict.fromkeys(storages, 0)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        start = offsets[tensor.dtype]
        offsets[tensor.dtype] = start + tensor.numel()
        nested[part][rest] = storages[tensor.dtype][start : start + tensor.numel()].view(tensor.shape)
    torch.save(nested, path)
    return path


def _dtypes(tensors: Mapping[str, Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors.values()}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
