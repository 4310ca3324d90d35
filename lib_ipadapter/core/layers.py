"""The cross-attentions of a UNet in the order of an adapter's keys, and whether an adapter fits them.

`session` checks the fit before sampling, `core.attach` hooks the layers, `core.weighting` weighs them.
Works by structure, so it reads ldm's, sgm's and Forge's UNet alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from torch import nn

from ..library.errors import WrongBaseError
from ..library.spec import CONTEXT_WIDTHS, AdapterSpec, base_title

_ATTN2 = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:(\d+)\.)?transformer_blocks\.(\d+)\.attn2")
# A file's keys count the middle block last, a UNet runs it between input and output.
_KEY_ORDER = {"input_blocks": 0, "output_blocks": 1, "middle_block": 2}
_CALL_ORDER = {"input_blocks": 0, "middle_block": 1, "output_blocks": 2}


class CrossAttentionLayer(NamedTuple):
    """One `attn2` of a UNet.

    `key_id` is its number in adapter files (odd, diffusers' `attn_processors` order), `width` its inner channels,
    `context_dim` the width of its context, `block` the place of its SpatialTransformer in call order.
    """

    key_id: int
    path: str
    module: nn.Module
    width: int
    context_dim: int
    block: int


def find_cross_attention(unet: nn.Module) -> list[CrossAttentionLayer]:
    """All `attn2` of a UNet in key-id order 1, 3, 5, ...: input blocks, output blocks, the middle block last.

    An empty list where the net has no such layers (Flux, SD3). Order: diffusers `UNet2DConditionModel.attn_processors`
    (down, up, mid), as the files' `ip_adapter.<id>.to_k_ip.weight` are numbered.
    """
    found: list[tuple[tuple[int, ...], tuple[int, ...], str, nn.Module]] = []
    for path, module in cast(Iterator[tuple[str, nn.Module]], unet.named_modules()):
        match = _ATTN2.fullmatch(path)
        if match is None:
            continue
        section, block, child, depth = match[1], int(match[2]), int(match[3] or 0), int(match[4])
        transformer = (_CALL_ORDER[section], block, child)
        found.append(((_KEY_ORDER[section], block, child, depth), transformer, path, module))
    blocks = {transformer: t for t, transformer in enumerate(sorted({entry[1] for entry in found}))}
    found.sort(key=lambda entry: entry[0])
    return [
        CrossAttentionLayer(
            key_id=2 * number + 1,
            path=path,
            module=module,
            width=linear_shape(module.get_submodule("to_q"))[0],
            context_dim=linear_shape(module.get_submodule("to_k"))[1],
            block=blocks[transformer],
        )
        for number, (_, transformer, path, module) in enumerate(found)
    ]


def check_fit(layers: Sequence[CrossAttentionLayer], spec: AdapterSpec) -> None:
    """Check that an adapter's layers are this UNet's: their count, context width and widths.

    Raises:
        WrongBaseError: with the numbers of both sides.
    """
    advice = "choose an adapter made for this checkpoint, or a checkpoint of the adapter's base"
    if not layers:
        raise WrongBaseError(
            f"The loaded checkpoint's UNet has no cross-attention layers that an IP-Adapter could act on, and this "
            f"{base_title(spec.base)} adapter needs {len(spec.layers)}: {advice}."
        )
    context_dim = layers[0].context_dim
    if spec.context_dim != context_dim:
        bases = " or ".join(map(base_title, CONTEXT_WIDTHS.get(context_dim, ()))) or "unknown"
        raise WrongBaseError(
            f"The adapter is for {base_title(spec.base)} (context width {spec.context_dim}, {len(spec.layers)} layers) "
            f"and the loaded checkpoint is {bases} (context width {context_dim}, {len(layers)} layers): {advice}."
        )
    if len(spec.layers) != len(layers):
        raise WrongBaseError(
            f"The adapter has {len(spec.layers)} layers and the loaded checkpoint's UNet {len(layers)} "
            f"(16 in SD1 and SD2, 70 in SDXL; distilled models such as SSD-1B have fewer): {advice}."
        )
    for layer in layers:
        width = spec.layers.get(layer.key_id)
        if width != layer.width:
            has = f"is {width} wide" if width is not None else "is missing"
            raise WrongBaseError(
                f"The adapter's layer {layer.key_id} {has} and the loaded checkpoint's ({layer.path}) is "
                f"{layer.width} wide: {advice}."
            )


def linear_shape(linear: Any) -> tuple[int, int]:
    """(out, in) features of a linear layer of any host, quantised ones included.

    The attributes come first, because quantised weights are packed; Forge's 4-bit linears have none and keep the
    shape in the weight's `quant_state`; its GGUF weights report the real shape.
    """
    if hasattr(linear, "out_features") and hasattr(linear, "in_features"):
        return int(linear.out_features), int(linear.in_features)
    weight = linear.weight
    state = getattr(weight, "quant_state", None)
    shape = weight.shape if state is None else state.shape
    return int(shape[0]), int(shape[1])
