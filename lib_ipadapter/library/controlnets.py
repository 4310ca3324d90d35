"""ControlNets from headers: every size comes from shapes, both layouts end in diffusers' names.

`detection` reports them, `session` asks `read_controlnet` for the one that runs as IdentityNet, `core.identity_net`
builds it. Layouts: diffusers `ControlNetModel`, ldm/sgm `ControlNet` (cldm.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from .controlnet_names import ldm_to_diffusers
from .errors import AdapterFileError
from .headers import read_header
from .naming import strip_wrappers
from .printable import shown
from .spec import ControlNetSpec, TensorInfo
from .verdicts import Verdict

_DTYPES = ("F16", "BF16", "F32", "F64")
_DEPTH = re.compile(r"down_blocks\.(\d{1,2})\.attentions\.0\.transformer_blocks\.(\d{1,2})\.norm1\.weight")
_LEVEL = re.compile(r"down_blocks\.(\d{1,2})\.resnets\.0\.conv1\.weight")
_MID = re.compile(r"mid_block\.attentions\.0\.transformer_blocks\.(\d{1,2})\.norm1\.weight")
_HINT = re.compile(r"controlnet_cond_embedding\.blocks\.(\d{1,2})\.weight")
_UNION = ("task_embedding", "control_add_embedding.linear_1.weight", "transformer_layes.0.ln_1.weight")
_GROUPS = 32
# Twice what SD1.5 and SDXL have: a header of small size cannot ask for a net without end.
_MOST_LEVELS = 8
_MOST_BLOCKS = 20


def read_controlnet(path: Path) -> ControlNetSpec:
    """Describe the ControlNet in a file.

    Raises: AdapterFileError when the file cannot be read, or is no ControlNet that can be run here; it says why.
    """
    found = describe_controlnet(read_header(path).tensors)
    if isinstance(found, Verdict):
        raise AdapterFileError(f"{path.name}: {found.message}")
    return found


def describe_controlnet(tensors: Mapping[str, TensorInfo]) -> ControlNetSpec | Verdict:
    """Size a ControlNet from a file's names and shapes. A Verdict says why it cannot be run here."""
    if "difference" in tensors:
        return _refused("It is stored as the difference to its base model; use the whole ControlNet.")
    layout, names = _official_names(tensors)
    infos = {official: tensors[stored] for official, stored in names.items()}
    if any(name in infos for name in _UNION):
        return _refused("It is a ControlNet Union, which has parts that InstantID's has not.")
    spec = _sized(infos)
    if isinstance(spec, Verdict):
        return spec
    problem = _first_difference(infos, controlnet_shapes(spec))
    if problem is not None:
        return problem
    return replace(spec, layout=layout, tensors=names)


def controlnet_shapes(spec: ControlNetSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a ControlNet of these sizes has, by diffusers' name.

    The projections around a transformer are matrices here; SD1.5 files store them as 1x1 convolutions.
    """
    first, last = spec.channels[0], spec.channels[-1]
    time = 4 * first
    found = _affine("conv_in", first, spec.in_channels, 3, 3)
    found |= _affine("time_embedding.linear_1", time, first) | _affine("time_embedding.linear_2", time, time)
    if spec.y_dim:
        found |= _affine("add_embedding.linear_1", time, spec.y_dim) | _affine("add_embedding.linear_2", time, time)
    found |= _hint_shapes(spec)
    width = first
    for level, (out, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
        for place in (0, 1):
            found |= _resnet(f"down_blocks.{level}.resnets.{place}", width, out, time)
            if depth:
                found |= _transformer(f"down_blocks.{level}.attentions.{place}", out, depth, spec.context_dim)
            width = out
        if level < len(spec.channels) - 1:
            found |= _affine(f"down_blocks.{level}.downsamplers.0.conv", out, out, 3, 3)
    found |= _resnet("mid_block.resnets.0", last, last, time) | _resnet("mid_block.resnets.1", last, last, time)
    if spec.mid_depth:
        found |= _transformer("mid_block.attentions.0", last, spec.mid_depth, spec.context_dim)
    for number, residual in enumerate(spec.residuals):
        found |= _affine(f"controlnet_down_blocks.{number}", residual, residual, 1, 1)
    return found | _affine("controlnet_mid_block", last, last, 1, 1)


def _affine(name: str, rows: int, *columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _hint_shapes(spec: ControlNetSpec) -> dict[str, tuple[int, ...]]:
    widths, name = spec.hint_widths, "controlnet_cond_embedding"
    found = _affine(f"{name}.conv_in", widths[0], spec.hint_channels, 3, 3)
    for number, (width, following) in enumerate(pairwise(widths)):
        found |= _affine(f"{name}.blocks.{2 * number}", width, width, 3, 3)
        found |= _affine(f"{name}.blocks.{2 * number + 1}", following, width, 3, 3)
    return found | _affine(f"{name}.conv_out", spec.channels[0], widths[-1], 3, 3)


def _resnet(name: str, width: int, out: int, time: int) -> dict[str, tuple[int, ...]]:
    found = _affine(f"{name}.norm1", width) | _affine(f"{name}.conv1", out, width, 3, 3)
    found |= _affine(f"{name}.time_emb_proj", out, time)
    found |= _affine(f"{name}.norm2", out) | _affine(f"{name}.conv2", out, out, 3, 3)
    return found | (_affine(f"{name}.conv_shortcut", out, width, 1, 1) if width != out else {})


def _transformer(name: str, width: int, depth: int, context: int) -> dict[str, tuple[int, ...]]:
    found = _affine(f"{name}.norm", width) | _affine(f"{name}.proj_in", width, width)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, source in (("attn1", width), ("attn2", context)):
            found |= {f"{block}.{attention}.to_q.weight": (width, width)}
            found |= {f"{block}.{attention}.to_{part}.weight": (width, source) for part in "kv"}
            found |= _affine(f"{block}.{attention}.to_out.0", width, width)
        for norm in ("norm1", "norm2", "norm3"):
            found |= _affine(f"{block}.{norm}", width)
        found |= _affine(f"{block}.ff.net.0.proj", 8 * width, width) | _affine(f"{block}.ff.net.2", width, 4 * width)
    return found | _affine(f"{name}.proj_out", width, width)


# -- names and sizes


def _official_names(tensors: Mapping[str, TensorInfo]) -> tuple[Literal["diffusers", "ldm"], dict[str, str]]:
    """The layout, and diffusers' names mapped to the file's. A prefix `control_model.` leaves all else out."""
    bare = dict(zip(strip_wrappers(tensors), tensors, strict=True))
    prefixed = {n.removeprefix("control_model."): at for n, at in bare.items() if n.startswith("control_model.")}
    bare = prefixed or bare
    if "conv_in.weight" in bare:
        return "diffusers", bare
    return "ldm", {ldm_to_diffusers(name): at for name, at in bare.items()}


def _count(pattern: re.Pattern[str], infos: Mapping[str, TensorInfo]) -> int:
    return len({match[1] for match in map(pattern.fullmatch, infos) if match})


def _sized(infos: Mapping[str, TensorInfo]) -> ControlNetSpec | Verdict:
    """Read every size from the shape that tells it first; `_first_difference` asks all the others."""

    def extent(name: str, axis: int) -> int:
        shape = infos[name].shape
        if len(shape) <= axis:
            raise _WrongShapeError(f"{shown(name)} has shape {list(shape)}")
        return shape[axis]

    try:
        levels = _count(_LEVEL, infos)
        channels = tuple(extent(f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in range(levels))
        depths = [0] * levels
        for match in filter(None, map(_DEPTH.fullmatch, infos)):
            if int(match[1]) < levels:
                depths[int(match[1])] += 1
        attention = next((n for n in infos if n.endswith("attn2.to_k.weight")), "")
        context = extent(attention, 1) if attention else 0
        hints = _count(_HINT, infos) // 2
        hint = "controlnet_cond_embedding."
        widths = [extent(f"{hint}conv_in.weight", 0)]
        widths += [extent(f"{hint}blocks.{2 * number + 1}.weight", 0) for number in range(hints)]
        spec = ControlNetSpec(
            layout="diffusers",
            context_dim=context,
            channels=channels,
            depths=tuple(depths),
            mid_depth=_count(_MID, infos),
            heads=tuple(_heads(context, width) for width in channels),
            y_dim=extent("add_embedding.linear_1.weight", 1) if "add_embedding.linear_1.weight" in infos else 0,
            in_channels=extent("conv_in.weight", 1),
            hint_channels=extent(f"{hint}conv_in.weight", 1),
            hint_widths=tuple(widths),
        )
    except KeyError as error:
        return _refused(f"It lacks {error.args[0]}; download it again.")
    except _WrongShapeError as error:
        return _refused(f"{error}; download it again.")
    return _unusual(spec) or spec


class _WrongShapeError(Exception):
    """A tensor has fewer dimensions than every ControlNet's has."""


def _heads(context: int, width: int) -> int:
    return 8 if context == 768 else max(1, width // 64)


def _unusual(spec: ControlNetSpec) -> Verdict | None:
    """What has the right names and cannot be run: sizes that the pictures and latents here do not have."""
    if not spec.context_dim or not spec.channels or not spec.mid_depth:
        return _refused("It has no cross-attention, so it cannot see a face.")
    if any(width < _GROUPS or width % _GROUPS for width in spec.channels):
        return _refused(f"Its widths {list(spec.channels)} are no multiples of {_GROUPS}; download it again.")
    if len(spec.channels) > _MOST_LEVELS or max(*spec.depths, spec.mid_depth) > _MOST_BLOCKS:
        return _refused(
            f"It has {len(spec.channels)} levels with {list(spec.depths)} transformer blocks; SDXL's has 3 with 0, 2 "
            "and 10."
        )
    if (spec.in_channels, spec.hint_channels, len(spec.hint_widths)) != (4, 3, 4):
        return _refused(
            f"It takes {spec.in_channels}-channel latents and a {spec.hint_channels}-channel picture halved "
            f"{len(spec.hint_widths) - 1} times; InstantID's takes 4, 3 and 3."
        )
    return None


def _first_difference(infos: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]) -> Verdict | None:
    for name, shape in expected.items():
        info = infos.get(name)
        if info is None:
            return _refused(f"It lacks {name} ({len(infos)} of {len(expected)} tensors); download it again.")
        if _as_matrix(name, info.shape) != shape:
            return _refused(f"{name} has shape {list(info.shape)}, expected {list(shape)}; download it again.")
        if info.dtype not in _DTYPES:
            return _refused(f"It is stored as {shown(info.dtype, 20)}; use the F16, BF16 or F32 version.")
    extra = next((name for name in infos if name not in expected), None)
    if extra is not None:
        return _refused(f"It has a tensor {shown(extra)} that InstantID's has not; it is another kind of ControlNet.")
    return None


def _as_matrix(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """SD1.5's projections around a transformer are 1x1 convolutions: the same matrix with two more dimensions."""
    if name.endswith((".proj_in.weight", ".proj_out.weight")) and len(shape) == 4 and shape[2:] == (1, 1):
        return shape[:2]
    return shape


def _refused(sentence: str) -> Verdict:
    return Verdict("unsupported", f"This ControlNet cannot run as IdentityNet. {sentence}", kind="controlnet")
