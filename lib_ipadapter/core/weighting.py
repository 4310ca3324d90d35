"""The one table of layer weights: what an intent means for each cross-attention layer.

`session` asks it per unit; `core.attach` gets the answer. The rows are those of ComfyUI_IPAdapter_plus
(IPAdapterPlus.py, weight types) and sd-webui-controlnet (ipadapter/weight.py), by block in call order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ..library.errors import BadUnitError, WrongBaseError
from .layers import CrossAttentionLayer

Intent = Literal["image", "style", "composition", "style_composition", "face", "instantid"]
INTENTS: tuple[Intent, ...] = get_args(Intent)


class _Share(NamedTuple):
    """A block's weight: the unit's own, or its composition weight, times a factor."""

    factor: float = 1.0
    composition: bool = False


# Blocks (SpatialTransformers in call order) that an intent acts on; the others get nothing.
# SD1 and SD2: 0-5 input, 6 middle, 7-15 output. SDXL: 0-3 input, 4 middle, 5-10 output.
_SD_STYLE = {block: _Share() for block in (*range(4), *range(9, 16))}
_SD_COMPOSITION = {4: _Share(0.25, composition=True), 5: _Share(composition=True)}
_SDXL_STYLE = {6: _Share()}
_SDXL_COMPOSITION = {3: _Share(composition=True)}
_BLOCKS: dict[int, dict[Intent, dict[int, _Share]]] = {
    16: {
        "style": _SD_STYLE,
        "composition": _SD_COMPOSITION,
        "style_composition": _SD_STYLE | _SD_COMPOSITION,
    },
    11: {
        "style": _SDXL_STYLE,
        "composition": _SDXL_COMPOSITION,
        "style_composition": _SDXL_STYLE | _SDXL_COMPOSITION,
    },
}


def layer_weights(
    intent: str,
    layers: Sequence[CrossAttentionLayer],
    weight: float,
    composition_weight: float | None = None,
) -> dict[int, float]:
    """Weight per key id; layers that the intent leaves out are not in the answer.

    `composition_weight` is for the blocks that place things and defaults to `weight`.

    Raises:
        BadUnitError: no such intent.
        WrongBaseError: the intent is not known for a UNet with this many blocks.
    """
    if intent in ("image", "face", "instantid"):
        return {layer.key_id: weight for layer in layers}
    if intent not in INTENTS:
        raise BadUnitError(f'The intent "{intent}" is unknown; choose one of {", ".join(INTENTS)}.')
    count = len({layer.block for layer in layers})
    if count not in _BLOCKS:
        raise WrongBaseError(
            f'The intent "{intent}" is known for UNets with {" or ".join(map(str, _BLOCKS))} attention blocks, and the '
            f'loaded checkpoint has {count}; choose the intent "image".'
        )
    composition = weight if composition_weight is None else composition_weight
    shares = _BLOCKS[count][intent]
    return {
        layer.key_id: share.factor * (composition if share.composition else weight)
        for layer in layers
        if (share := shares.get(layer.block)) is not None
    }
