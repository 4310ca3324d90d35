"""Whether a ControlNet fits a UNet, read from the UNet's own blocks. `session` asks before it loads the file.

Works by structure, so it reads ldm's, sgm's and Forge's UNet alike. A ControlNet runs wherever its widths, and `y`
where the UNet has one, are the UNet's: that the published InstantID is for SDXL is a fact of its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import nn

from ..library.errors import WrongBaseError
from ..library.spec import ControlNetSpec
from .layers import CrossAttentionLayer, find_cross_attention, linear_shape


class UNetShape(NamedTuple):
    """What a ControlNet must agree with.

    `skips` are the widths of the skip connections in the order in which they are made, `mid` the middle block's,
    `depths` the transformer blocks behind each skip, `heads` the attention heads by width; `y_dim` is 0 without `y`.
    """

    skips: tuple[int, ...]
    depths: tuple[int, ...]
    mid: int
    mid_depth: int
    heads: dict[int, int]
    y_dim: int
    in_channels: int


def fit_to_unet(
    spec: ControlNetSpec, unet: nn.Module, layers: Sequence[CrossAttentionLayer] | None = None
) -> ControlNetSpec:
    """The description with the UNet's heads in place of the assumed ones: build the net from this.

    `layers` are the UNet's cross-attentions where the caller has them.

    Raises: WrongBaseError with the numbers of both sides, where the residuals would not fit the skip connections, the
        net wants another `y`, or the latents have fewer channels than it reads.
    """
    shape = read_unet_shape(unet, find_cross_attention(unet) if layers is None else layers)
    wanted = _wanted_depths(spec)
    if (spec.residuals, spec.channels[-1]) != (shape.skips, shape.mid):
        _refuse(f"skip connections {_listed(spec.residuals)}", _listed(shape.skips))
    if (wanted, spec.mid_depth) != (shape.depths, shape.mid_depth):
        _refuse(
            f"transformer blocks {_listed(wanted)} and {spec.mid_depth} in the middle",
            f"{_listed(shape.depths)} and {shape.mid_depth}",
        )
    if spec.y_dim != shape.y_dim:
        _refuse(f"a vector of {spec.y_dim} numbers beside the prompt", str(shape.y_dim))
    if spec.in_channels > shape.in_channels:
        _refuse(f"latents of {spec.in_channels} channels", str(shape.in_channels))
    heads = tuple(shape.heads.get(width, assumed) for width, assumed in zip(spec.channels, spec.heads, strict=True))
    return replace(spec, heads=heads)


def read_unet_shape(unet: nn.Module, layers: Sequence[CrossAttentionLayer]) -> UNetShape:
    """Read the sizes off a UNet's blocks.

    Raises: WrongBaseError where it has no input and middle blocks (Flux, SD3).
    """
    blocks = getattr(unet, "input_blocks", None)
    middle = getattr(unet, "middle_block", None)
    if blocks is None or middle is None:
        raise WrongBaseError(
            "The loaded checkpoint's model has no input and middle blocks, so IdentityNet has nowhere to act: choose "
            "an SDXL checkpoint."
        )
    inputs = [cast("Sequence[nn.Module]", block) for block in cast("Sequence[nn.Module]", blocks)]
    middle = cast("Sequence[nn.Module]", middle)
    return UNetShape(
        skips=tuple(_width(block) for block in inputs),
        depths=tuple(_depth(block) for block in inputs),
        mid=_width(middle),
        mid_depth=_depth(middle),
        heads={layer.width: int(cast(Any, layer.module).heads) for layer in layers},
        y_dim=_y_dim(unet),
        in_channels=int(cast(Any, inputs[0][0]).in_channels),
    )


def _wanted_depths(spec: ControlNetSpec) -> tuple[int, ...]:
    """Transformer blocks behind each residual: none after the first convolution and after a halving."""
    found = [0]
    for level, depth in enumerate(spec.depths):
        found += [depth, depth] + ([0] if level < len(spec.depths) - 1 else [])
    return tuple(found)


def _width(block: Sequence[nn.Module]) -> int:
    """Width of what a block gives: that of its last layer which says so (a transformer does not change it)."""
    return int(next(cast(Any, layer).out_channels for layer in _reversed(block) if hasattr(layer, "out_channels")))


def _reversed(block: Sequence[nn.Module]) -> Iterator[nn.Module]:
    return (block[place] for place in reversed(range(len(block))))


def _depth(block: Sequence[nn.Module]) -> int:
    transformers = [layer for layer in block if hasattr(layer, "transformer_blocks")]
    return sum(len(cast(Any, layer).transformer_blocks) for layer in transformers)


def _y_dim(unet: nn.Module) -> int:
    embedding = getattr(unet, "label_emb", None)
    if not isinstance(embedding, nn.Module):
        return 0
    first = next((layer for layer in embedding.modules() if getattr(layer, "weight", None) is not None), None)
    return 0 if first is None else linear_shape(first)[1]


def _listed(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))


def _refuse(net_has: str, unet_has: str) -> None:
    raise WrongBaseError(
        f"IdentityNet's file is for a UNet with {net_has}, and the loaded checkpoint's has {unet_has}: choose a file "
        "made for this checkpoint, or a checkpoint of the file's base (the published InstantID is for SDXL)."
    )
