"""From an adapter's normalised tensors to its AdapterSpec: layers, base, LoRA, projector, variant.

`detection` calls this once a file has both parts. The rules are numbered in its docstrings as they are asked; each
either hands over to the next or ends in a Verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from . import ties
from .attention_ids import cross_attention_ids
from .catalogue import KnownFile
from .printable import shown
from .projectors import Projector, describe_projector
from .rows import RELATIVES
from .spec import LAYER_COUNTS, AdapterSpec, Base, Kind, TensorInfo
from .ties import Evidence, Tie
from .verdicts import Verdict, damaged, unsupported

_KEY = re.compile(r"^(0|[1-9][0-9]{0,3})\.(?:to_([kv])_ip|to_(q|k|v|out)_lora\.(down|up))\.weight$")
_BASES: dict[int, Base] = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
_FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
_FOREIGN_ATTENTION = {3072: "Flux", 2432: "SD3.5"}
# How files of the plain kind are called; nothing depends on it but the word shown.
_PLAIN_NAMES = (
    ("light_v11", r"(?<![a-z])light[-_ ]?v11"),
    ("light", r"(?<![a-z])light(?![a-z])"),
    ("noob", r"noob"),
)


class Attention(NamedTuple):
    """The attention part: context width, layer id -> width, and the internal LoRA's rank (0 without one)."""

    context_dim: int
    layers: dict[int, int]
    base: Base
    lora_rank: int


def describe_adapter(evidence: Evidence) -> AdapterSpec | Verdict:
    """Describe an adapter that has a projector and attention weights, or say why it cannot be used."""
    names = evidence.names
    verdict = _relative(names.projector, names.attention) or _unusable_types(names.projector, names.attention)
    if verdict is not None:
        return verdict
    attention = describe_attention(names.attention)
    if isinstance(attention, Verdict):
        return attention
    projector = describe_projector(names.projector, attention.context_dim, attention.lora_rank)
    if isinstance(projector, Verdict):
        return projector
    if attention.lora_rank and projector.spec.family not in ("face_mlp", "face_plus"):
        return unsupported("An IP-Adapter for pictures with a LoRA inside, which no published file has.")
    return _assemble(replace(evidence, base=attention.base), attention, projector)


def _relative(projector: Mapping[str, TensorInfo], attention: Mapping[str, TensorInfo]) -> Verdict | None:
    texts = {"projector": "\n".join(projector), "attention": "\n".join(attention)}
    for row in RELATIVES:
        if re.search(row.pattern, texts[row.part], re.MULTILINE):
            return unsupported(row.sentence, row.base or context_base(attention))
    return None


def _unusable_types(*parts: Mapping[str, TensorInfo]) -> Verdict | None:
    for part in parts:
        for name, info in part.items():
            if info.dtype not in _FLOATS:
                return unsupported(
                    f"An IP-Adapter whose {shown(name)} is stored as {shown(info.dtype, 20)}; "
                    "use the F16, BF16 or F32 version."
                )
    return None


# -- attention


def context_base(tensors: Mapping[str, TensorInfo]) -> Base | Literal[""]:
    """The base whose context all the `[width, context]` matrices of an attention part take, "" when they differ.

    For files in other layouts than ours, of which only the base is to be said; a LoRA's matrices do not count.
    """
    widths = {info.shape[1] for name, info in tensors.items() if len(info.shape) == 2 and "_lora" not in name}
    return _BASES.get(widths.pop(), "") if len(widths) == 1 else ""


def describe_attention(tensors: Mapping[str, TensorInfo]) -> Attention | Verdict:
    """Read layer ids, widths, base and LoRA from `<id>.to_k_ip.weight [width, context]` and its companions."""
    keys: dict[int, TensorInfo] = {}
    values: dict[int, TensorInfo] = {}
    lora: dict[tuple[int, str, str], TensorInfo] = {}
    for name, info in tensors.items():
        match = _KEY.match(name)
        if match is None:
            return unsupported(f"An IP-Adapter with an unknown attention key {shown(name)}; use a published one.")
        if len(info.shape) != 2 or min(info.shape) < 1:
            return damaged(f"{name} has shape {list(info.shape)}, expected two dimensions")
        number, image, part, way = match.groups()
        if image:
            (keys if image == "k" else values)[int(number)] = info
        else:
            lora[int(number), part, way] = info
    layers = _pairs(keys, values)
    if isinstance(layers, Verdict):
        return layers
    contexts = {info.shape[1] for info in (*keys.values(), *values.values())}
    if len(contexts) != 1:
        return damaged(f"its layers expect contexts of different widths ({sorted(contexts)})")
    context_dim = contexts.pop()
    base = _base(tuple(layers), layers, context_dim)
    if isinstance(base, Verdict):
        return base
    rank = _lora_rank(lora, layers, context_dim)
    return rank if isinstance(rank, Verdict) else Attention(context_dim, layers, base, rank)


def _pairs(keys: Mapping[int, TensorInfo], values: Mapping[int, TensorInfo]) -> dict[int, int] | Verdict:
    for number in sorted(keys.keys() ^ values.keys()):
        has, lacks = ("to_k_ip", "to_v_ip") if number in keys else ("to_v_ip", "to_k_ip")
        return damaged(f"layer {number} has {has} and no {lacks}")
    for number in sorted(keys):
        k, v = keys[number].shape, values[number].shape
        if k != v:
            return damaged(f"layer {number} has to_k_ip of shape {list(k)} and to_v_ip of shape {list(v)}")
    if not keys:
        return damaged("it has no to_k_ip and to_v_ip")
    return {number: keys[number].shape[0] for number in sorted(keys)}


def _base(ids: tuple[int, ...], layers: Mapping[int, int], context_dim: int) -> Base | Verdict:
    widths = set(layers.values())
    if ids == tuple(range(len(ids))) and len(ids) > 1:
        other = _FOREIGN_ATTENTION.get(next(iter(widths)), "another transformer") if len(widths) == 1 else "another net"
        return unsupported(
            f"An IP-Adapter for {other} (layers 0, 1, 2, ... of width {max(widths)}); "
            "here SD1, SD2 and SDXL adapters work.",
            base=other if other in _FOREIGN_ATTENTION.values() else "",
        )
    base = _BASES.get(context_dim)
    if base is None:
        return unsupported(
            f"An IP-Adapter for a model with context width {context_dim}; here 768 (SD1), 1024 (SD2) and 2048 (SDXL) "
            "work."
        )
    expected = cross_attention_ids(LAYER_COUNTS[base])
    if ids == expected:
        return base
    if set(ids) < set(expected):
        missing = next(number for number in expected if number not in layers)
        return damaged(
            f"it has {len(ids)} of {len(expected)} {base} layers (the first missing one is {missing}), "
            "or it was made for a pruned model"
        )
    extra = next(number for number in ids if number not in expected)
    return unsupported(f"An IP-Adapter for context width {context_dim} with a layer {extra} that {base} does not have.")


def _lora_rank(
    lora: Mapping[tuple[int, str, str], TensorInfo], layers: Mapping[int, int], context_dim: int
) -> int | Verdict:
    if not lora:
        return 0
    needed = len(layers) * 16
    if len(lora) != needed:
        return damaged(f"its internal LoRA has {len(lora)} of {needed} tensors")
    ranks = {info.shape[0] if way == "down" else info.shape[1] for (_, _, way), info in lora.items()}
    if len(ranks) != 1:
        return damaged(f"its internal LoRA has several ranks ({sorted(ranks)})")
    rank = ranks.pop()
    for (number, part, way), info in lora.items():
        width = layers.get(number | 1)
        if width is None:
            return damaged(f"its internal LoRA has a layer {number} that the model does not have")
        source = context_dim if number % 2 and part in ("k", "v") else width
        shape = (rank, source) if way == "down" else (width, rank)
        if info.shape != shape:
            return damaged(f"{number}.to_{part}_lora.{way} has shape {list(info.shape)}, expected {list(shape)}")
    return rank


# -- kind and variant


def _tie(evidence: Evidence, attention: Attention, projector: Projector) -> Tie | None:
    """The tie a file of these shapes is in, None when shapes tell all."""
    family, kind = projector.spec.family, projector.kind
    if projector.kolors:
        return None
    if family == "face_plus":
        return None if attention.base == "SDXL" else ties.FACEID_PLUS
    if kind == "instantid":
        return ties.FACE_RESAMPLER
    if kind == "plus":
        early = attention.base == "SD1" and evidence.header.container == "torch"
        return ties.PLUS_SD1_TORCH if early else ties.PLUS
    if family == "linear" and attention.base == "SDXL" and projector.encoders == ("clip_g",):
        return ties.SDXL_STYLE
    return None


def _assemble(evidence: Evidence, attention: Attention, projector: Projector) -> AdapterSpec:
    tie = _tie(evidence, attention, projector)
    kind, encoders, variant, rule = projector.kind, projector.encoders, "", "shapes"
    if tie is not None:
        (answer, variant), rule = ties.settle(tie, evidence)
        kind = _as_kind(answer)
    elif kind == "plus":
        variant = "plus"
    if kind == "faceid_portrait_unnorm":
        encoders = ("buffalo_l",)
    if kind == "base" and variant in ("", "base"):
        variant = _plain_variant(evidence, attention.base, encoders)
    elif kind == "full_face":
        variant = "full-face"
    elif kind == "faceid_portrait" and re.search(r"v1\.?1", evidence.path.stem.lower()):
        variant = "v11"
    known = _published(evidence, kind)
    if known is not None and rule != "override":
        variant, rule = known.variant, "sha256"
    return AdapterSpec(
        kind=kind,
        variant=variant,
        base="Kolors" if projector.kolors else attention.base,
        tokens=projector.spec.tokens,
        encoders=encoders,
        feature=projector.feature,
        context_dim=attention.context_dim,
        layers=attention.layers,
        projector=projector.spec,
        image_size=448 if variant == "style-448" else projector.image_size,
        lora_rank=attention.lora_rank,
        decided_by=rule,
        tensors=dict(evidence.names.tensors),
    )


def _as_kind(text: str) -> Kind:
    kinds: dict[str, Kind] = {
        "plus": "plus",
        "base": "base",
        "faceid_plus": "faceid_plus",
        "faceid_plus_v2": "faceid_plus_v2",
        "instantid": "instantid",
        "faceid_portrait_unnorm": "faceid_portrait_unnorm",
    }
    return kinds[text]


def _published(evidence: Evidence, kind: Kind) -> KnownFile | None:
    """The published file of the given sha256, where it is of this kind."""
    digest = evidence.sha256.lower()
    rows = (known for known in evidence.known if known.kind == kind and len(known.sha256) >= 8)
    return next((known for known in rows if digest and digest.startswith(known.sha256)), None)


def _plain_variant(evidence: Evidence, base: Base, encoders: tuple[str, ...]) -> str:
    """The word for a plain adapter, from its name or else from its encoder: nothing else depends on it."""
    stem = evidence.path.stem.lower()
    for word, pattern in _PLAIN_NAMES:
        if re.search(pattern, stem):
            return word
    if base == "SDXL":
        return "vit-h" if encoders == ("clip_h",) else "base"
    return "vit-G" if encoders == ("clip_g",) else "base"
