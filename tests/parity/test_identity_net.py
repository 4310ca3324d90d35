"""IdentityNet against diffusers' `ControlNetModel` with the same random weights, and both of its file layouts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.core.identity_net import IdentityNet, build_identity_net, load_identity_net
from lib_ipadapter.core.residuals import UnitResiduals, attach_residuals
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall
from lib_ipadapter.library.controlnets import read_controlnet
from lib_ipadapter.library.spec import ControlNetSpec
from tests.core.random_controlnets import (
    SD15,
    SDXL,
    as_published,
    ldm_controlnet,
    narrow,
    random_controlnet,
    save_controlnet,
)
from tests.parity.tolerances import CONTROLLED_UNET, RESIDUALS
from tests.unets import sd15_unet, sdxl_unet, unet_inputs

pytest.importorskip("diffusers", reason="diffusers is in the Forge environment only")

from diffusers import ControlNetModel

from tests.parity.diffusers_unets import diffusers_controlnet, diffusers_inputs, diffusers_twin, sdxl_condition

SPECS = {"SD1": narrow(SD15), "SDXL": narrow(SDXL, y_dim=16 + 6 * 8, depths=2)}
UNETS = {"SD1": sd15_unet, "SDXL": partial(sdxl_unet, depths={2: 2, 4: 2})}
STRENGTH = 0.7


def call(spec: ControlNetSpec, size: tuple[int, int] = (16, 24), rows: int = 2) -> dict[str, Tensor]:
    """Latents, timesteps, face tokens, hint and `y` for one call; every row differs."""
    generator = torch.Generator().manual_seed(5)
    height, width = size
    inputs = {
        "x": torch.randn(rows, 4, height, width, generator=generator),
        "timesteps": torch.linspace(21.0, 981.5, rows),
        "context": torch.randn(rows, 16, spec.context_dim, generator=generator),
        "hint": torch.rand(rows, 3, 8 * height, 8 * width, generator=generator),
    }
    if spec.y_dim:
        inputs["y"] = torch.randn(rows, spec.y_dim, generator=generator)
    return inputs


@torch.no_grad()
def theirs(net: ControlNetModel, inputs: dict[str, Tensor], strength: float = 1.0) -> tuple[list[Tensor], Tensor]:
    conditions: dict[str, Tensor] = {}
    if "y" in inputs:
        ids = torch.tensor([64.0, 96.0, 0.0, 8.0, 64.0, 96.0])
        sizes = net.add_time_proj(ids).flatten()
        inputs["y"][:, -len(sizes) :] = sizes
        conditions = {"text_embeds": inputs["y"][:, : -len(sizes)], "time_ids": ids.repeat(len(inputs["y"]), 1)}
    return net(
        sample=inputs["x"],
        timestep=inputs["timesteps"],
        encoder_hidden_states=inputs["context"],
        controlnet_cond=inputs["hint"],
        conditioning_scale=strength,
        added_cond_kwargs=conditions,
        return_dict=False,
    )


def ours(net: IdentityNet, inputs: dict[str, Tensor], strength: float = 1.0) -> tuple[list[Tensor], Tensor]:
    residuals = net(
        inputs["x"],
        inputs["timesteps"],
        inputs["context"],
        net.embed_hint(inputs["hint"]),
        inputs.get("y"),
        strength=strength,
    )
    return residuals.down, residuals.mid


def assert_equal(found: tuple[list[Tensor], Tensor], expected: tuple[list[Tensor], Tensor]) -> None:
    assert len(found[0]) == len(expected[0])
    for ours_, theirs_ in zip([*found[0], found[1]], [*expected[0], expected[1]], strict=True):
        assert theirs_.abs().mean() > 0.05
        torch.testing.assert_close(ours_, theirs_, atol=RESIDUALS, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (9, 13)], ids=str)
@pytest.mark.parametrize("base", SPECS)
def test_residuals_equal_diffusers(base: str, size: tuple[int, int]) -> None:
    spec = SPECS[base]
    tensors = random_controlnet(spec)
    twin = diffusers_controlnet(spec, tensors)
    inputs = call(spec, size)
    expected = theirs(twin, inputs, STRENGTH)
    found = ours(build_identity_net(spec, dict(tensors)), inputs, STRENGTH)
    assert len(found[0]) == {"SD1": 12, "SDXL": 9}[base]
    assert_equal(found, expected)


@pytest.mark.parametrize("base", SPECS)
def test_norms_are_diffusers(base: str) -> None:
    """Too small a difference to show in residuals of random weights."""
    spec = SPECS[base]
    tensors = random_controlnet(spec)
    net = build_identity_net(spec, dict(tensors))
    twin = diffusers_controlnet(spec, tensors)
    norms = {name: module for name, module in twin.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))}
    assert len(norms) > 30
    for name, norm in norms.items():
        ours_ = net.get_submodule(name)
        assert (type(ours_), ours_.eps) == (type(norm), norm.eps), name
        assert getattr(ours_, "num_groups", None) == getattr(norm, "num_groups", None)


@pytest.mark.parametrize("base", SPECS)
def test_a_file_that_diffusers_saved_is_described_and_loaded(base: str, tmp_path: Path) -> None:
    spec = SPECS[base]
    twin = diffusers_controlnet(spec, random_controlnet(spec))
    twin.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    described = read_controlnet(path)
    sizes = ("context_dim", "channels", "depths", "mid_depth", "y_dim", "in_channels", "hint_channels", "hint_widths")
    assert [getattr(described, name) for name in sizes] == [getattr(spec, name) for name in sizes]
    assert described.layout == "diffusers"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("base", SPECS)
def test_both_layouts_give_the_same_net(base: str, prefix: str, suffix: str, tmp_path: Path) -> None:
    spec = SPECS[base]
    tensors = random_controlnet(spec)
    first = save_controlnet(tmp_path / f"diffusers{suffix}", as_published(spec, tensors))
    second = save_controlnet(tmp_path / f"ldm{suffix}", ldm_controlnet(spec, tensors, prefix))
    nets: list[IdentityNet] = []
    for path, layout in ((first, "diffusers"), (second, "ldm")):
        described = read_controlnet(path)
        assert described.layout == layout
        nets.append(load_identity_net(described, path))
        path.unlink()
    states = [net.state_dict() for net in nets]
    assert states[0].keys() == states[1].keys() == tensors.keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in tensors)


@torch.no_grad()
@pytest.mark.parametrize("rows", [(COND, UNCOND), (UNCOND, COND, COND)], ids=["cond-uncond", "uncond-cond-cond"])
@pytest.mark.parametrize("base", UNETS)
def test_a_step_with_two_controlnets_equals_diffusers(base: str, rows: tuple[int, ...]) -> None:
    """One sees the face's tokens and the other the prompt, as diffusers' InstantID pipeline feeds them."""
    unet = UNETS[base]()
    twin = diffusers_twin(unet)
    inputs = unet_inputs(unet, len(rows))
    if "y" in inputs:
        inputs["y"] = sdxl_condition(twin, inputs["y"])
    spec = narrow(SD15 if base == "SD1" else SDXL, depths=2)
    tensors = [random_controlnet(spec, seed) for seed in (0, 1)]
    generator = torch.Generator().manual_seed(9)
    faces = torch.randn(2, 16, spec.context_dim, generator=generator)
    prompts = torch.randn(2, 77, spec.context_dim, generator=generator)
    inputs["context"] = prompts[list(rows)]
    converted = diffusers_inputs(twin, inputs)
    hints = torch.rand(2, 1, 3, 128, 128, generator=generator)
    total: list[Tensor] | None = None
    for number, strength in enumerate((0.8, 0.6)):
        down, mid = diffusers_controlnet(spec, tensors[number], size_width=256)(
            sample=inputs["x"],
            timestep=inputs["timesteps"],
            encoder_hidden_states=faces[list(rows)] if number == 0 else inputs["context"],
            controlnet_cond=hints[number].expand(len(rows), -1, -1, -1),
            conditioning_scale=strength,
            added_cond_kwargs=converted["added_cond_kwargs"],
            return_dict=False,
        )
        total = [*down, mid] if total is None else [a + b for a, b in zip(total, [*down, mid], strict=True)]
    assert total is not None
    expected = twin(
        **converted, down_block_additional_residuals=total[:-1], mid_block_additional_residual=total[-1]
    ).sample
    nets = [build_identity_net(spec, each) for each in tensors]
    identity = UnitResiduals("face", nets[0], hints[0], faces, strength=0.8)
    depth = UnitResiduals("depth", nets[1], hints[1], prompts, strength=0.6)
    with attach_residuals(unet, [identity, depth], lambda _args, _kwargs: UNetCall(rows, 0.0)):
        found = unet(**inputs)
    torch.testing.assert_close(found, expected, atol=CONTROLLED_UNET, rtol=0)
    assert (found - unet(**inputs)).abs().max() > 100 * CONTROLLED_UNET
