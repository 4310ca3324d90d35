"""What an adapter's projector is, from its tensors' shapes; `detection` asks once base and attention are known.

Every dimension is read, none is assumed, and every tensor of the family must be there with the shape that follows
from them. Classes (tencent-ailab/IP-Adapter): ImageProjModel `linear`, Resampler `resampler`, MLPProjModel
`full_face` and `face_mlp`, ProjPlusModel `face_plus`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .printable import shown
from .spec import EncoderName, Feature, Kind, ProjectorSpec, TensorInfo
from .verdicts import Verdict, damaged, unsupported

HEAD_WIDTH = 64
FACE_WIDTH = 512
FULL_FACE_TOKENS = 257
_POOLED: dict[int, tuple[EncoderName, ...]] = {1024: ("clip_h",), 1280: ("clip_g",)}
_HIDDEN: dict[int, tuple[EncoderName, ...]] = {1280: ("clip_h",), 1664: ("clip_g",)}
_FOREIGN_WIDTHS = {
    30: "a style-embedding adapter, which takes no picture",
    1152: "an adapter for the SigLIP vision encoder, which belongs to Flux and SD3.5",
}
Shapes = dict[str, tuple[int, ...]]


class Projector(NamedTuple):
    """A projector found: its dimensions, the kind it makes the adapter, and what must feed it.

    `encoders` is empty when any vision encoder of the width `spec.input_dim` (`hidden_dim`) will do.
    """

    spec: ProjectorSpec
    kind: Kind
    encoders: tuple[EncoderName, ...]
    feature: Feature
    image_size: int = 224
    kolors: bool = False


def describe_projector(tensors: Mapping[str, TensorInfo], context_dim: int, lora_rank: int) -> Projector | Verdict:
    """Recognise a projector by its keys (without `image_proj.`) that makes tokens `context_dim` wide."""
    shapes = {name: info.shape for name, info in tensors.items()}
    for sign, needed, describe in _FAMILIES:
        # A family is known by any of its names, so that a file that lacks one of them is not taken for another's.
        if any(re.match(sign, name) for name in shapes):
            return _lacking(shapes, needed) or describe(shapes, context_dim, lora_rank)
    keys = ", ".join(shown(name) for name in list(shapes)[:3])
    return unsupported(f"An IP-Adapter with an unknown projector ({keys}, ...); use a published one.")


def _compare(shapes: Shapes, expected: Shapes) -> Verdict | None:
    """Say which tensor is missing, of another shape, or not part of the family."""
    for name, shape in expected.items():
        if name not in shapes:
            return damaged(f"its projector lacks {name}")
        if shapes[name] != shape:
            return damaged(f"its projector's {name} has shape {list(shapes[name])}, expected {list(shape)}")
    for name in shapes:
        if name not in expected:
            return unsupported(
                f"An IP-Adapter whose projector has an unknown tensor {shown(name)}; use a published one."
            )
    return None


def _foreign(width: int) -> Verdict | None:
    what = _FOREIGN_WIDTHS.get(width)
    return unsupported(f"This is {what}; use an IP-Adapter for CLIP ViT-H or bigG.") if what else None


def _face_width(width: int) -> Verdict | None:
    if width == FACE_WIDTH:
        return None
    return _foreign(width) or unsupported(
        f"An IP-Adapter whose face projector takes {width} numbers; face vectors here have {FACE_WIDTH}."
    )


def _matrix(shapes: Shapes, name: str) -> tuple[int, int] | None:
    shape = shapes.get(name, ())
    return (shape[0], shape[1]) if len(shape) == 2 and min(shape) > 0 else None


def _lacking(shapes: Shapes, needed: Iterable[str]) -> Verdict | None:
    """Say which of the tensors that the sizes are read from is missing or has not even the dimensions."""
    for name in needed:
        if name not in shapes:
            return damaged(f"its projector lacks {name}")
        if len(shapes[name]) != (3 if name == "latents" else 2) or min(shapes[name]) < 1:
            return _misfit(shapes, name)
    return None


def _misfit(shapes: Shapes, name: str) -> Verdict:
    return damaged(f"its projector's {name} has shape {list(shapes[name])}, which fits no adapter")


def _affine(name: str, rows: int, columns: int | None = None) -> Shapes:
    weight = (rows,) if columns is None else (rows, columns)
    return {f"{name}.weight": weight, f"{name}.bias": (rows,)}


def _linear(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`proj.weight [tokens * context, width]`, `norm` (ImageProjModel)."""
    rows, width = shapes["proj.weight"]
    if rows % context_dim:
        return _misfit(shapes, "proj.weight")
    wrong = _foreign(width) or _compare(shapes, {**_affine("proj", rows, width), **_affine("norm", context_dim)})
    if wrong:
        return wrong
    spec = ProjectorSpec("linear", rows // context_dim, width, context_dim)
    return Projector(spec, "base", _POOLED.get(width, ()), "pooled")


def _perceiver(shapes: Shapes, prefix: str, width: int, dim: int) -> tuple[Shapes, int, int] | Verdict:
    """The shapes of a Perceiver's layers, its heads and depth (Resampler, FacePerceiverResampler)."""
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d{1,3})\.")
    depth = len({match[1] for match in map(pattern.match, shapes) if match})
    queries = _matrix(shapes, f"{prefix}layers.0.0.to_q.weight")
    if depth == 0 or queries is None:
        return damaged(f"its projector lacks {prefix}layers.0.0.to_q.weight")
    inner = queries[0]
    if inner % HEAD_WIDTH:
        return unsupported(
            f"An IP-Adapter whose projector's attention is {inner} wide, not a multiple of {HEAD_WIDTH}; "
            "use a published one."
        )
    expected: Shapes = _affine(f"{prefix}proj_in", dim, width)
    for number in range(depth):
        layer = f"{prefix}layers.{number}"
        expected |= _affine(f"{layer}.0.norm1", dim) | _affine(f"{layer}.0.norm2", dim) | _affine(f"{layer}.1.0", dim)
        expected[f"{layer}.0.to_q.weight"] = (inner, dim)
        expected[f"{layer}.0.to_kv.weight"] = (2 * inner, dim)
        expected[f"{layer}.0.to_out.weight"] = (dim, inner)
        hidden = _matrix(shapes, f"{layer}.1.1.weight")
        rows = hidden[0] if hidden else 4 * dim
        expected[f"{layer}.1.1.weight"] = (rows, dim)
        expected[f"{layer}.1.3.weight"] = (dim, rows)
    return expected, inner // HEAD_WIDTH, depth


def _resampler(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`latents [1, tokens, dim]` query the encoder's hidden states, or one face vector (Resampler)."""
    (one, tokens, dim), (_, width) = shapes["latents"], shapes["proj_in.weight"]
    if one != 1:
        return _misfit(shapes, "latents")
    perceiver = _foreign(width) or _perceiver(shapes, "", width, dim)
    if isinstance(perceiver, Verdict):
        return perceiver
    layers, heads, depth = perceiver
    layers |= {"latents": (1, tokens, dim), **_affine("proj_out", context_dim, dim), **_affine("norm_out", context_dim)}
    spec = ProjectorSpec("resampler", tokens, width, context_dim, dim=dim, heads=heads, depth=depth)
    return _compare(shapes, layers) or _resampler_for(spec)


def _resampler_for(spec: ProjectorSpec) -> Projector:
    """The kind follows from what is fed in: a face vector, ViT-L/14-336 for Kolors, else a CLIP tower."""
    width, context_dim = spec.input_dim, spec.output_dim
    if width == FACE_WIDTH:
        return Projector(spec, "instantid", ("antelopev2",), "face_raw", image_size=0)
    if width == 1024 and context_dim == 2048:
        return Projector(spec, "plus", ("clip_l_336",), "hidden", image_size=336, kolors=True)
    return Projector(spec, "plus", _HIDDEN.get(width, ()), "hidden")


def _full_face(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`proj.0`, `proj.2`, `proj.3` on each of the encoder's tokens (MLPProjModel)."""
    rows, width = shapes["proj.0.weight"]
    expected = _affine("proj.0", rows, width) | _affine("proj.2", context_dim, rows) | _affine("proj.3", context_dim)
    wrong = _foreign(width) or _compare(shapes, expected)
    if wrong:
        return wrong
    spec = ProjectorSpec("full_face", FULL_FACE_TOKENS, width, context_dim, dim=rows)
    return Projector(spec, "full_face", _HIDDEN.get(width, ()), "hidden")


def _face_mlp(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`proj.0 [hidden, 512]`, `proj.2 [tokens * context, hidden]`, `norm` (MLPProjModel of FaceID)."""
    (hidden, width), (rows, _) = shapes["proj.0.weight"], shapes["proj.2.weight"]
    if rows % context_dim:
        return _misfit(shapes, "proj.2.weight")
    expected = _affine("proj.0", hidden, width) | _affine("proj.2", rows, hidden) | _affine("norm", context_dim)
    wrong = _face_width(width) or _compare(shapes, expected)
    if wrong:
        return wrong
    spec = ProjectorSpec("face_mlp", rows // context_dim, FACE_WIDTH, context_dim, dim=hidden)
    portrait = spec.tokens == 16 and not lora_rank
    return Projector(spec, "faceid_portrait" if portrait else "faceid", ("buffalo_l",), "face", image_size=0)


def _face_plus(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`face_mlp` tokens that query the encoder's hidden states (ProjPlusModel)."""
    prefix = "perceiver_resampler."
    dim, width = shapes[f"{prefix}proj_in.weight"]
    (hidden, face), (rows, _) = shapes["proj.0.weight"], shapes["proj.2.weight"]
    if (dim, width) == (4096, 1024):
        return unsupported(
            "Kolors FaceID, whose tokens only Kolors' own text projection can read; use it in a Kolors pipeline.",
            base="Kolors",
        )
    if dim != context_dim or rows % dim:
        return damaged(f"its face tokens are {dim} wide where its attention expects {context_dim}")
    perceiver = _face_width(face) or _foreign(width) or _perceiver(shapes, prefix, width, dim)
    if isinstance(perceiver, Verdict):
        return perceiver
    layers, heads, depth = perceiver
    layers |= _affine("proj.0", hidden, face) | _affine("proj.2", rows, hidden) | _affine("norm", dim)
    layers |= _affine(f"{prefix}proj_out", dim, dim) | _affine(f"{prefix}norm_out", dim)
    spec = ProjectorSpec("face_plus", rows // dim, FACE_WIDTH, dim, width, dim, heads, depth)
    encoders: tuple[EncoderName, ...] = ("buffalo_l", *_HIDDEN.get(width, ()))
    return _compare(shapes, layers) or Projector(spec, "faceid_plus_v2", encoders, "face_hidden")


def _mlp(shapes: Shapes, context_dim: int, lora_rank: int) -> Projector | Verdict:
    """`proj.0` and `proj.2`: FaceID's when they end in `norm`, else either family without its end."""
    if any(name.startswith("norm.") for name in shapes):
        return _face_mlp(shapes, context_dim, lora_rank)
    return damaged(f"its projector lacks {'norm' if shapes['proj.0.weight'][1] == FACE_WIDTH else 'proj.3'}.weight")


_MLP = ("proj.0.weight", "proj.2.weight")
# What a family's names begin with, the tensors that its sizes are read from, and how it is described.
_FAMILIES = (
    (r"perceiver_resampler\.", ("perceiver_resampler.proj_in.weight", *_MLP), _face_plus),
    (r"latents$|proj_(?:in|out)\.|norm_out\.|layers\.\d+\.[01]\.", ("latents", "proj_in.weight"), _resampler),
    (r"proj\.3\.", _MLP, _full_face),
    (r"proj\.[02]\.", _MLP, _mlp),
    (r"proj\.(?:weight|bias)$", ("proj.weight",), _linear),
)
