"""A whole UNet step with image prompts against diffusers' UNet, processors and loader, with the same random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.adapter import Adapter
from lib_ipadapter.core.attach import UnitAttention, attach
from lib_ipadapter.core.embeds import Features, ImageTokens
from lib_ipadapter.core.layers import check_fit, find_cross_attention
from lib_ipadapter.core.projections import build_projector
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall, Window
from lib_ipadapter.core.weighting import layer_weights
from lib_ipadapter.library.spec import Base, Kind
from tests.core.random_adapters import describe_adapter, random_adapter_tensors
from tests.parity.tolerances import WHOLE_UNET
from tests.unets import sd2_unet, sd15_unet, sdxl_unet, unet_inputs

pytest.importorskip("diffusers", reason="diffusers is in the Forge environment only")

from tests.parity.diffusers_unets import diffusers_inputs, diffusers_twin, sdxl_condition

BUILDERS: dict[Base, Any] = {"SD1": sd15_unet, "SD2": sd2_unet, "SDXL": sdxl_unet}


@dataclass
class Pair:
    """The same UNet twice."""

    base: Base
    ours: Any
    twin: Any

    def inputs(self, rows: int) -> dict[str, Tensor]:
        inputs = unet_inputs(self.ours, rows)
        if "y" in inputs:
            inputs["y"] = sdxl_condition(self.twin, inputs["y"])
        return inputs


@dataclass
class Reference:
    """One adapter file's tensors, the features of one picture `(1, ...)` for cond and uncond, and a weight."""

    kind: Kind
    tensors: dict[str, Tensor]
    features: tuple[Tensor, Tensor]
    weight: float

    def nested(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in self.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        return parts


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(request: pytest.FixtureRequest) -> Pair:
    ours = BUILDERS[request.param]()
    return Pair(request.param, ours, diffusers_twin(ours))


def reference(pair: Pair, kind: Kind, weight: float, seed: int) -> Reference:
    layers = find_cross_attention(pair.ours)
    sizes = {"dim": 64, "heads": 1} if kind == "plus" else {}
    tensors = random_adapter_tensors(
        kind, layers[0].context_dim, [layer.width for layer in layers], input_dim=64, seed=seed, **sizes
    )
    generator = torch.Generator().manual_seed(seed + 100)
    shape = (1, 257, 64) if kind == "plus" else (1, 64)
    cond, uncond = (torch.randn(shape, generator=generator) for _ in range(2))
    return Reference(kind, tensors, (cond, uncond), weight)


def unit(pair: Pair, reference: Reference) -> UnitAttention:
    """The unit through our own adapter: projector, K and V, weights."""
    spec = describe_adapter(reference.kind, reference.tensors, base=pair.base)
    layers = find_cross_attention(pair.ours)
    check_fit(layers, spec)
    parts = reference.nested()
    weights = {
        x: {key_id: parts["ip_adapter"][f"{key_id}.to_{x}_ip.weight"] for key_id in spec.layers} for x in ("k", "v")
    }
    adapter = Adapter(spec, build_projector(spec.projector, parts["image_proj"]), weights["k"], weights["v"])
    field = "hidden" if reference.kind == "plus" else "pooled"
    cond, uncond = (adapter.project(Features(**{field: features})) for features in reference.features)
    kv = adapter.layer_kv(ImageTokens(cond, uncond))
    return UnitAttention(reference.kind, kv, layer_weights("image", layers, reference.weight), Window())


@torch.no_grad()
def expected_step(pair: Pair, references: list[Reference], rows: tuple[int, ...], inputs: dict[str, Tensor]) -> Tensor:
    """The step in diffusers, adapters loaded by its own loader; its processors are put back afterwards."""
    before = pair.twin.attn_processors
    converted = diffusers_inputs(pair.twin, inputs)
    pair.twin._load_ip_adapter_weights([reference.nested() for reference in references])
    for processor in pair.twin.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [reference.weight for reference in references]
    converted["added_cond_kwargs"]["image_embeds"] = [
        torch.cat([reference.features[kind] for kind in rows]).unsqueeze(1) for reference in references
    ]
    try:
        return pair.twin(**converted).sample
    finally:
        pair.twin.encoder_hid_proj = None
        pair.twin.config.encoder_hid_dim_type = None
        pair.twin.set_attn_processor(before)


@torch.no_grad()
def our_step(pair: Pair, units: list[UnitAttention], rows: tuple[int, ...], inputs: dict[str, Tensor]) -> Tensor:
    with attach(pair.ours, units, lambda _args, _kwargs: UNetCall(rows, 0.0)):
        return pair.ours(**inputs)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=WHOLE_UNET, rtol=0)


@torch.no_grad()
def test_the_plain_unets_are_equal(pair: Pair) -> None:
    inputs = pair.inputs(2)
    assert_close(pair.ours(**inputs), pair.twin(**diffusers_inputs(pair.twin, inputs)).sample)


@pytest.mark.parametrize("rows", [(COND, UNCOND), (UNCOND, COND, COND)], ids=["cond-uncond", "uncond-cond-cond"])
@pytest.mark.parametrize(
    "adapters", [[("base", 0.7)], [("base", 0.6), ("plus", -1.3)]], ids=["one adapter", "two adapters"]
)
def test_a_step_equals_diffusers(pair: Pair, adapters: list[tuple[Kind, float]], rows: tuple[int, ...]) -> None:
    inputs = pair.inputs(len(rows))
    references = [reference(pair, kind, weight, seed) for seed, (kind, weight) in enumerate(adapters)]
    ours = our_step(pair, [unit(pair, each) for each in references], rows, inputs)
    assert_close(ours, expected_step(pair, references, rows, inputs))
    with torch.no_grad():
        plain = pair.ours(**inputs)
    assert (ours - plain).abs().max() > 100 * WHOLE_UNET
