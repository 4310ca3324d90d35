"""The LoRA's names against diffusers' own order of attentions, and its effect on a whole UNet against diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.lora import FaceLora, lora_modules, read_adapter_lora
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.spec import Base
from tests.core.random_adapters import save_adapter
from tests.core.random_loras import faceid_tensors
from tests.parity.tolerances import WHOLE_UNET
from tests.unets import sd15_unet, sdxl_unet, unet_inputs

pytest.importorskip("diffusers", reason="diffusers is in the Forge environment only")

from tests.parity.diffusers_unets import diffusers_inputs, diffusers_name, diffusers_twin, sdxl_condition

BUILDERS: dict[Base, Any] = {"SD1": sd15_unet, "SDXL": sdxl_unet}


@pytest.fixture(scope="module", params=list(BUILDERS))
def base(request: pytest.FixtureRequest) -> Base:
    return request.param


def test_names_follow_diffusers_processors(base: Base) -> None:
    twin = diffusers_twin(BUILDERS[base]())
    names = [name.removesuffix(".processor").replace(".", "_") for name in twin.attn_processors]
    assert {key_id: f"lora_unet_{name}" for key_id, name in enumerate(names)} == lora_modules(base)


@torch.no_grad()
def test_merged_into_the_ldm_unet_it_equals_diffusers(base: Base, tmp_path: Path) -> None:
    """Ours by kohya's names on ldm's layers; the reference by the adapter's ids on diffusers' attention modules."""
    ours = BUILDERS[base]()
    twin: Any = diffusers_twin(ours)
    layers = find_cross_attention(ours)
    widths = [layer.width for layer in layers]
    tensors = faceid_tensors(layers[0].context_dim, widths, dtype=torch.float32)
    path = save_adapter(tmp_path / "ip-adapter-faceid.bin", tensors, "nested-bin")
    spec = inspect_file(path).adapter
    assert spec is not None
    inputs = unet_inputs(ours)
    if "y" in inputs:
        inputs["y"] = sdxl_condition(twin, inputs["y"])
    plain = ours(**inputs)
    _merge(ours, read_adapter_lora(spec, path), strength=0.6)
    for number, name in enumerate(twin.attn_processors):
        attention = twin.get_submodule(name.removesuffix(".processor"))
        for x, linear in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v),
                          ("out", attention.to_out[0])):  # fmt: skip
            up, down = (tensors[f"ip_adapter.{number}.to_{x}_lora.{way}.weight"] for way in ("up", "down"))
            linear.weight += 0.6 * (up @ down)
    result = ours(**inputs)
    torch.testing.assert_close(result, twin(**diffusers_inputs(twin, inputs)).sample, atol=WHOLE_UNET, rtol=0)
    assert (result - plain).abs().max() > 100 * WHOLE_UNET


def _merge(unet: torch.nn.Module, lora: FaceLora, strength: float) -> None:
    """W + strength * up @ down on ldm's layers, found by their diffusers names; every tensor is used once."""
    left = set(lora.weights)
    for name, parameter in unet.named_parameters():
        module = "lora_unet_" + diffusers_name(name).removesuffix(".weight").replace(".", "_")
        if name.endswith(".weight") and f"{module}.lora_up.weight" in lora.weights:
            up, down = (lora.weights[f"{module}.lora_{way}.weight"] for way in ("up", "down"))
            parameter.add_(up @ down, alpha=strength)
            left -= {f"{module}.lora_{way}.weight" for way in ("up", "down")}
    assert not left
