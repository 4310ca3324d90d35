"""The table of layer weights, against the peers' tables written out by block."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lib_ipadapter.core.layers import CrossAttentionLayer
from lib_ipadapter.core.weighting import INTENTS, layer_weights
from lib_ipadapter.library.errors import BadUnitError, WrongBaseError

SD_DEPTHS = [1] * 16
SDXL_DEPTHS = [2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2]

W, C = 0.8, 0.5
EXPECTED: dict[tuple[int, str], dict[int, float]] = {
    (16, "image"): dict.fromkeys(range(16), W),
    (16, "style"): dict.fromkeys([0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15], W),
    (16, "composition"): {4: C / 4, 5: C},
    (16, "style_composition"): dict.fromkeys([0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15], W) | {4: C / 4, 5: C},
    (11, "image"): dict.fromkeys(range(11), W),
    (11, "style"): {6: W},
    (11, "composition"): {3: C},
    (11, "style_composition"): {3: C, 6: W},
}


def layers(depths: list[int]) -> list[CrossAttentionLayer]:
    """Layers of a UNet whose blocks have these depths, in key order: the middle block last."""
    middle = {16: 6, 11: 4}.get(len(depths), 0)
    order = [block for block in range(len(depths)) if block != middle] + [middle] * bool(depths)
    blocks = [block for block in order for _ in range(depths[block])]
    return [CrossAttentionLayer(2 * n + 1, f"layer {n}", nn.Identity(), 8, 8, block) for n, block in enumerate(blocks)]


@pytest.mark.parametrize(("blocks", "intent"), EXPECTED)
def test_weights_by_block(blocks: int, intent: str) -> None:
    net = layers(SD_DEPTHS if blocks == 16 else SDXL_DEPTHS)
    weights = layer_weights(intent, net, W, C)
    expected = EXPECTED[blocks, intent]
    assert weights == {layer.key_id: expected[layer.block] for layer in net if layer.block in expected}


@pytest.mark.parametrize("depths", [SD_DEPTHS, SDXL_DEPTHS])
@pytest.mark.parametrize("intent", INTENTS)
def test_the_composition_weight_is_the_weight_unless_given(intent: str, depths: list[int]) -> None:
    net = layers(depths)
    assert layer_weights(intent, net, 0.7) == layer_weights(intent, net, 0.7, 0.7)


def test_negative_and_zero_weights_are_kept() -> None:
    assert layer_weights("style", layers(SDXL_DEPTHS), -1.0) == dict.fromkeys(range(69, 89, 2), -1.0)
    assert set(layer_weights("style_composition", layers(SDXL_DEPTHS), 1.0, 0.0).values()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("intent", "depths", "error"),
    [("stile", SD_DEPTHS, BadUnitError), ("style", [1] * 9, WrongBaseError), ("composition", [], WrongBaseError)],
)
def test_what_is_unknown_is_refused(intent: str, depths: list[int], error: Any) -> None:
    with pytest.raises(error, match=intent):
        layer_weights(intent, layers(depths), 1.0)


def test_every_unet_has_the_plain_intent() -> None:
    assert len(layer_weights("image", layers([1] * 9), 1.0)) == 9
