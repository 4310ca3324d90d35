"""Which cross-attention has which key id, and whether an adapter fits. The expected order is the published files'."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_ipadapter.core.layers import check_fit, find_cross_attention
from lib_ipadapter.library.errors import WrongBaseError
from lib_ipadapter.library.spec import AdapterSpec
from tests.core.random_adapters import describe_adapter, random_adapter_tensors
from tests.unets import sd2_unet, sd15_unet, sdxl_unet

SD_PATHS = [
    *[f"input_blocks.{n}.1.transformer_blocks.0.attn2" for n in (1, 2, 4, 5, 7, 8)],
    *[f"output_blocks.{n}.1.transformer_blocks.0.attn2" for n in range(3, 12)],
    "middle_block.1.transformer_blocks.0.attn2",
]
SD_BLOCKS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 6]
SDXL_GROUPS = [
    ("input_blocks.4", 2, 0),
    ("input_blocks.5", 2, 1),
    ("input_blocks.7", 10, 2),
    ("input_blocks.8", 10, 3),
    ("output_blocks.0", 10, 5),
    ("output_blocks.1", 10, 6),
    ("output_blocks.2", 10, 7),
    ("output_blocks.3", 2, 8),
    ("output_blocks.4", 2, 9),
    ("output_blocks.5", 2, 10),
    ("middle_block", 10, 4),
]


def sd_spec(base: Any = "SD1", context_dim: int = 768, widths: tuple[int, ...] = ()) -> AdapterSpec:
    widths = widths or (32, 32, 64, 64, *[128] * 5, *[64] * 3, *[32] * 3, 128)
    return describe_adapter("base", random_adapter_tensors("base", context_dim, widths, input_dim=8), base=base)


@pytest.mark.parametrize(("build", "context_dim"), [(sd15_unet, 768), (sd2_unet, 1024)])
def test_sixteen_layers_in_file_order(build: Any, context_dim: int) -> None:
    layers = find_cross_attention(build())
    assert [layer.path for layer in layers] == SD_PATHS
    assert [layer.key_id for layer in layers] == list(range(1, 32, 2))
    assert [layer.block for layer in layers] == SD_BLOCKS
    widths = [1, 1, 2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1, 4]
    assert [layer.width for layer in layers] == [32 * width for width in widths]
    assert {layer.context_dim for layer in layers} == {context_dim}


def test_seventy_layers_in_file_order() -> None:
    unet = sdxl_unet()
    layers = find_cross_attention(unet)
    child = [".1.transformer_blocks."] * len(SDXL_GROUPS)
    expected = [
        (f"{path}{middle}{depth}.attn2", block)
        for (path, depths, block), middle in zip(SDXL_GROUPS, child, strict=True)
        for depth in range(depths)
    ]
    assert [(layer.path, layer.block) for layer in layers] == expected
    assert [layer.key_id for layer in layers] == list(range(1, 140, 2))
    assert [layer.width for layer in layers] == [64] * 4 + [128] * 50 + [64] * 6 + [128] * 10
    assert all(layer.module is unet.get_submodule(layer.path) for layer in layers)


def test_blocks_are_numbered_in_the_order_the_unet_runs_them() -> None:
    unet = sd15_unet()
    ran: list[str] = []
    layers = find_cross_attention(unet)
    for layer in layers:
        layer.module.register_forward_hook(lambda *_, path=layer.path: ran.append(path))
    unet(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 2, 768))
    assert ran == [layer.path for layer in sorted(layers, key=lambda layer: layer.block)]


def test_a_net_without_cross_attention_has_no_layers() -> None:
    assert find_cross_attention(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize(
    "quantised",
    [
        lambda linear: _bare(
            out_features=linear.out_features, in_features=linear.in_features, weight=torch.empty(7, 1)
        ),
        lambda linear: _bare(
            weight=SimpleNamespace(quant_state=SimpleNamespace(shape=linear.weight.shape), shape=(7, 1))
        ),
        lambda linear: _bare(weight=SimpleNamespace(shape=linear.weight.shape)),
    ],
    ids=["attributes first", "4-bit state", "bare weight"],
)
def test_widths_of_quantised_linears(quantised: Any) -> None:
    unet = sd15_unet()
    for layer in find_cross_attention(unet):
        layer.module.to_q = quantised(layer.module.to_q)
        layer.module.to_k = quantised(layer.module.to_k)
    layers = find_cross_attention(unet)
    assert [layer.width for layer in layers[:5]] == [32, 32, 64, 64, 128]
    assert {layer.context_dim for layer in layers} == {768}


def _bare(**attributes: Any) -> nn.Module:
    module = nn.Identity()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_a_fitting_adapter_passes() -> None:
    check_fit(find_cross_attention(sd15_unet()), sd_spec())
    check_fit(find_cross_attention(sd2_unet()), sd_spec("SD2", 1024))


@pytest.mark.parametrize(
    ("build", "spec", "words"),
    [
        (sdxl_unet, sd_spec(), ["SD1", "768", "16", "SDXL", "2048", "70"]),
        (sd15_unet, sd_spec("SD2", 1024), ["SD2", "1024", "SD1", "768"]),
        (lambda: sdxl_unet(depths={2: 2, 4: 4}), sd_spec("SDXL", 2048), ["16 layers", "34", "SSD-1B"]),
        (
            sd15_unet,
            replace(sd_spec(), layers={**sd_spec().layers, 13: 640}),
            ["layer 13", "640 wide", "output_blocks.3", "128 wide"],
        ),
        (
            sd15_unet,
            replace(sd_spec(), layers={key + 100 * (key == 31): width for key, width in sd_spec().layers.items()}),
            ["layer 31", "missing"],
        ),
        (nn.Identity, sd_spec(), ["no cross-attention", "16"]),
    ],
    ids=["SDXL", "context width", "distilled", "width", "key ids", "no layers"],
)
def test_a_wrong_base_is_refused_with_the_numbers(build: Any, spec: AdapterSpec, words: list[str]) -> None:
    with pytest.raises(WrongBaseError) as refused:
        check_fit(find_cross_attention(build()), spec)
    assert [word for word in words if word not in str(refused.value)] == []
