"""Two people in two regions: what attention and residuals add is each one's alone in its core, in either order.

Both halves are attached as a job attaches them, with random weights and feathered regions; every layer and place sees
the plain UNet's input, as what is added is noted and taken away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.attach import UnitAttention, attach
from lib_ipadapter.core.identity_net import IdentityNet, build_identity_net
from lib_ipadapter.core.masks import averaged, level_sizes
from lib_ipadapter.core.residuals import UNetResiduals, UnitResiduals
from lib_ipadapter.core.schedule import UNetCall
from tests.core.attention_sums import ROWS, into_out
from tests.core.random_controlnets import SD15, SDXL, narrow, random_controlnet
from tests.core.test_attach import make_unit
from tests.unets import sd15_unet, sdxl_unet, unet_inputs

SIDE = 16
CANVAS = 8 * SIDE
Person = tuple[UnitAttention, UnitResiduals]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["SD1", "SDXL"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, IdentityNet]:
    if request.param == "SD1":
        spec, unet = narrow(SD15), sd15_unet()
    else:
        spec, unet = narrow(SDXL, y_dim=24, depths=1), sdxl_unet(label_dim=24, depths={2: 1, 4: 1})
    return unet, build_identity_net(spec, random_controlnet(spec))


def ramps(feather: int) -> tuple[Tensor, Tensor]:
    """The canvas's left and right part with an edge of so many pixels between them; together one everywhere."""
    places = torch.arange(CANVAS) + 0.5
    left = ((CANVAS / 2 - places) / max(feather, 1) + 0.5).clamp(0, 1).expand(CANVAS, CANVAS).contiguous()
    return left, 1 - left


def person(unet: Any, net: IdentityNet, seed: int, mask: Tensor | None) -> Person:
    generator = torch.Generator().manual_seed(seed)
    hint = torch.rand(1, 3, CANVAS, CANVAS, generator=generator)
    context = torch.randn(2, 16, net.spec.context_dim, generator=generator)
    weight = 0.6 + 0.1 * seed
    residuals = UnitResiduals(f"Unit {seed}", net, hint, context, strength=weight, mask=mask)
    return make_unit(unet, weight, seed=seed)._replace(mask=mask), residuals


def added(unet: Any, people: Sequence[Person], inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What went into each layer's `to_out` after the units had added, with the plain UNet's before it; and what they
    add at each place of the skips and the middle.
    """
    residuals = UNetResiduals(unet, [one for _, one in people])
    residuals.begin(UNetCall(ROWS, 0.0), (), inputs)
    total = residuals.current()
    assert total is not None
    places = [*total.down, total.mid]
    with into_out(unet, [one for one, _ in people]) as (_, after):
        unet(**inputs)
    return after, places  # type: ignore[return-value]


def level_of(length: int) -> tuple[int, int]:
    return next(size for size in level_sizes(SIDE, SIDE) if size[0] * size[1] == length)


@pytest.mark.parametrize("feather", [0, 13])
def test_in_its_core_each_has_what_it_has_alone(pair: tuple[Any, IdentityNet], feather: int) -> None:
    """To the last bit what the unit adds by itself there, and within rounding what it adds without any region."""
    unet, net = pair
    inputs, masks = unet_inputs(unet), ramps(feather)
    together = added(unet, [person(unet, net, seed, mask) for seed, mask in enumerate(masks, 1)], inputs)
    for seed, mask in enumerate(masks, 1):
        masked = added(unet, [person(unet, net, seed, mask)], inputs)
        alone = added(unet, [person(unet, net, seed, None)], inputs)
        other = added(unet, [person(unet, net, 3 - seed, None)], inputs)
        cores = 0
        for path, both in together[0].items():
            core = averaged(mask, level_of(both.shape[1])).flatten() == 1
            cores += int(core.sum())
            assert torch.equal(both[:, core], masked[0][path][:, core])
            torch.testing.assert_close(both[:, core], alone[0][path][:, core], **CLOSE)
            assert not core.any() or (alone[0][path] - other[0][path])[:, core].abs().max() > 0.01
        assert cores
        for both, one, whole, others in zip(together[1], masked[1], alone[1], other[1], strict=True):
            core = averaged(mask, (both.shape[2], both.shape[3])) == 1
            assert torch.equal(both[..., core], one[..., core])
            assert torch.equal(both[..., core], whole[..., core])
            assert not core.any() or (whole - others)[..., core].abs().max() > 1e-3


def test_between_the_cores_both_add_up(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs, masks = unet_inputs(unet), ramps(40)
    people = [person(unet, net, seed, mask) for seed, mask in enumerate(masks, 1)]
    together = added(unet, people, inputs)[1]
    alone = [added(unet, [person(unet, net, seed, None)], inputs)[1] for seed in (1, 2)]
    for both, one, other in zip(together, *alone, strict=True):
        left, right = (averaged(mask, (both.shape[2], both.shape[3])) for mask in masks)
        torch.testing.assert_close(both, left * one + right * other, **CLOSE)


def test_either_order_is_the_same_picture(pair: tuple[Any, IdentityNet]) -> None:
    """Residuals of two to the last bit; attention within rounding, as it is added to the text's one by one."""
    unet, net = pair
    inputs, masks = unet_inputs(unet), ramps(13)

    def people() -> list[Person]:
        return [person(unet, net, seed, mask) for seed, mask in enumerate(masks, 1)]

    one, other = added(unet, people(), inputs), added(unet, people()[::-1], inputs)
    assert all(map(torch.equal, one[1], other[1]))
    for path, found in one[0].items():
        torch.testing.assert_close(found, other[0][path], **CLOSE)
        outside = averaged(masks[0], level_of(found.shape[1])).flatten()
        cores = (outside == 1) | (outside == 0)
        assert torch.equal(found[:, cores], other[0][path][:, cores])
    pictures = []
    for order in (people(), people()[::-1]):
        nets = UNetResiduals(unet, [unit for _, unit in order])
        with attach(unet, [unit for unit, _ in order], lambda _a, _k: UNetCall(ROWS, 0.0), companions=(nets,)):
            pictures.append(unet(**inputs))
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)
