"""IdentityNet by itself: the published sizes, half precision, inpainting latents, damage, a host's own layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.core.identity_net import IdentityNet, build_identity_net, load_identity_net, timestep_embedding
from lib_ipadapter.library.controlnets import controlnet_shapes, read_controlnet
from lib_ipadapter.library.errors import AdapterFileError, WrongBaseError
from lib_ipadapter.library.spec import ControlNetSpec

from .random_controlnets import SD15, SDXL, as_published, narrow, random_controlnet, save_controlnet

SMALL = narrow(SDXL, y_dim=24, depths=1)


def inputs(spec: ControlNetSpec = SMALL, rows: int = 2, channels: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {
        "x": torch.randn(rows, channels, 8, 8, generator=generator),
        "timesteps": torch.linspace(100.0, 900.0, rows),
        "context": torch.randn(rows, 16, spec.context_dim, generator=generator),
        "hint": torch.rand(1, 3, 64, 64, generator=generator),
    }
    if spec.y_dim:
        found["y"] = torch.randn(rows, spec.y_dim, generator=generator)
    return found


def run(net: IdentityNet, given: dict[str, Tensor], strength: float = 1.0) -> list[Tensor]:
    down, mid = net(**{**given, "hint": net.embed_hint(given["hint"])}, strength=strength)
    return [*down, mid]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_controlnet(SMALL)


@pytest.fixture(scope="module")
def net(tensors: dict[str, Tensor]) -> IdentityNet:
    return build_identity_net(SMALL, dict(tensors))


@pytest.mark.parametrize("spec", [SD15, SDXL], ids=["SD1", "SDXL"])
def test_the_published_sizes_are_the_modules(spec: ControlNetSpec) -> None:
    """No memory and no random number: the net is made on the meta device, and takes the file's tensors by name."""
    random = torch.get_rng_state()
    net = IdentityNet(spec)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == controlnet_shapes(spec)
    assert len(net.controlnet_down_blocks) == len(spec.residuals) == {768: 12, 2048: 9}[spec.context_dim]
    published = {
        name: torch.empty_like(tensor, device="meta", dtype=torch.float16) for name, tensor in net.state_dict().items()
    }
    built = build_identity_net(spec, as_published(spec, published), dtype=torch.float16)
    norms = {parameter.dtype for name, parameter in built.named_parameters() if ".resnets.0.norm1." in name}
    assert norms == {torch.float32}
    assert built.conv_in.weight.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in built.parameters())


def test_residuals_have_the_sizes_of_the_skips(net: IdentityNet) -> None:
    shapes = [tuple(residual.shape[1:]) for residual in run(net, inputs())]
    assert shapes == [(32, 8, 8)] * 3 + [(32, 4, 4)] + [(64, 4, 4)] * 2 + [(64, 2, 2)] + [(128, 2, 2)] * 3


def test_odd_sides_are_halved_upwards(net: IdentityNet) -> None:
    given = inputs() | {"x": torch.randn(2, 4, 5, 7), "hint": torch.rand(1, 3, 40, 56)}
    sizes = [tuple(residual.shape[-2:]) for residual in run(net, given)]
    assert sizes == [(5, 7)] * 3 + [(3, 4)] * 3 + [(2, 2)] * 4


def test_strength_scales_every_residual(net: IdentityNet) -> None:
    for whole, part in zip(run(net, inputs()), run(net, inputs(), 0.25), strict=True):
        torch.testing.assert_close(part, 0.25 * whole)


@pytest.mark.parametrize("name", ["x", "timesteps", "context", "hint", "y"])
def test_every_input_counts(net: IdentityNet, name: str) -> None:
    given = inputs()
    before = run(net, given)
    after = run(net, given | {name: given[name].flip(-1) + 0.25})
    # The first level has one channel per group, where a norm takes the timestep out, and no attention.
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(after[4:], before[4:], strict=True))


def test_inpainting_latents_count_with_their_first_four_channels(net: IdentityNet) -> None:
    nine = inputs(channels=9)
    found = run(net, nine)
    assert all(map(torch.equal, found, run(net, nine | {"x": nine["x"][:, :4]})))
    assert not torch.equal(found[0], run(net, nine | {"x": nine["x"][:, 4:8]})[0])


def test_a_missing_y_is_named(net: IdentityNet) -> None:
    given = inputs()
    del given["y"]
    with pytest.raises(WrongBaseError, match="24 numbers"):
        run(net, given)


def test_half_precision_stays_near(tensors: dict[str, Tensor], net: IdentityNet) -> None:
    half = build_identity_net(SMALL, dict(tensors), dtype=torch.bfloat16)
    for exact, found in zip(run(net, inputs()), run(half, inputs()), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_group_norms_see_float32(tensors: dict[str, Tensor]) -> None:
    half = build_identity_net(SMALL, dict(tensors), dtype=torch.bfloat16)
    seen: set[torch.dtype] = set()
    for module in half.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _module, args: seen.add(args[0].dtype))
    run(half, inputs())
    assert seen == {torch.float32}


def test_the_hosts_autocast_changes_nothing(net: IdentityNet) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(net, inputs())
    assert all(map(torch.equal, inside, run(net, inputs())))


def test_timesteps_are_embedded_in_float32() -> None:
    found = timestep_embedding(torch.tensor([999.0], dtype=torch.bfloat16), 8)
    assert found.dtype == torch.float32
    angles = [torch.tensor([999.0], dtype=torch.bfloat16).item() * 10000 ** (-i / 4) for i in range(4)]
    expected = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_net_outlives_its_file_and_holds_it_once(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in tensors.items()}
    path = save_controlnet(tmp_path / "a.safetensors", half)
    loaded = load_identity_net(read_controlnet(path), path)
    path.write_bytes(b"something else")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, half[name].float())
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()
    given = dict(half)
    build_identity_net(SMALL, given)
    assert not given


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_tensors_that_are_not_as_described_are_refused(tensors: dict[str, Tensor], damage: str) -> None:
    given = dict(tensors)
    name = "mid_block.resnets.1.conv2.weight"
    if damage == "missing":
        del given[name]
    elif damage == "extra":
        name = "foo.weight"
        given[name] = torch.zeros(1)
    else:
        given[name] = given[name][:, :-1]
    with pytest.raises(AdapterFileError, match=name):
        build_identity_net(SMALL, given)


class HostLinear(nn.Module):
    """As a host's own linear layer is: no weight until it is loaded, moved to the input's type for each call."""

    def __init__(self, in_features: int, out_features: int, *_: Any, **__: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dummy = nn.Parameter(torch.empty(1))
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        self.weight = nn.Parameter(state_dict[f"{prefix}weight"].to(self.dummy))
        if f"{prefix}bias" in state_dict:
            self.bias = nn.Parameter(state_dict[f"{prefix}bias"].to(self.dummy))
        del self.dummy

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return nn.functional.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))


class HostConv(nn.Conv2d):
    """As a host's convolution is: it sets its own device, whatever it is asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "device": "cpu"})


@contextmanager
def host_layers() -> Iterator[None]:
    found = nn.Linear, nn.Conv2d
    nn.Linear, nn.Conv2d = HostLinear, HostConv  # type: ignore[misc]
    try:
        yield
    finally:
        nn.Linear, nn.Conv2d = found  # type: ignore[misc]


def test_a_host_may_build_it_from_its_own_layers(tensors: dict[str, Tensor], net: IdentityNet) -> None:
    with host_layers():
        swapped = build_identity_net(SMALL, dict(tensors))
    kinds = {type(module) for module in swapped.modules()}
    assert {HostLinear, HostConv} <= kinds
    assert not {nn.Linear, nn.Conv2d} & kinds
    assert not any(parameter.requires_grad for parameter in swapped.parameters())
    assert all(map(torch.equal, run(swapped, inputs()), run(net, inputs())))
