"""Masks of the canvas: the sizes of a UNet's levels, what a masked unit adds, calls in which no mask can be placed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules import openaimodel
from ldm.modules.diffusionmodules.openaimodel import Downsample
from torch import Tensor, nn

from lib_ipadapter.core.attach import UnitAttention, attach
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.masks import CanvasMask, averaged, level_sizes
from lib_ipadapter.core.schedule import UNetCall, Window
from lib_ipadapter.library.errors import UnsupportedHostStateError
from tests.attention_forwards import fused
from tests.core.attention_sums import into_out
from tests.unets import FittingCat, cast_unet, sd15_unet, sdxl_unet, unet_inputs

SIZES = [(16, 16), (12, 20), (13, 9), (7, 25), (1, 3)]
"""Latents: square, wide, odd in both, odd and wide, smaller than the levels are many."""


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hosts let ldm's UNet run at sizes that do not double back: the upper map is stretched to its skip's."""
    monkeypatch.setattr(openaimodel, "th", FittingCat())


@pytest.fixture(scope="module", params=[sd15_unet, sdxl_unet], ids=["SD1", "SDXL"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def unet() -> Any:
    return sd15_unet()


def inputs_of(unet: Any, size: tuple[int, int], rows: int = 2) -> dict[str, Tensor]:
    inputs = unet_inputs(unet, rows=rows)
    inputs["x"] = torch.randn(rows, unet.in_channels, *size, generator=torch.Generator().manual_seed(7))
    return inputs


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    return 8 * size[0], 8 * size[1]


def random_mask(size: tuple[int, int], seed: int = 5) -> Tensor:
    return torch.rand(canvas(size), generator=torch.Generator().manual_seed(seed))


def left_half(size: tuple[int, int]) -> Tensor:
    mask = torch.zeros(canvas(size))
    mask[:, : 4 * size[1]] = 1
    return mask


def make_unit(unet: nn.Module, mask: Tensor | None = None, seed: int = 0, weight: float = 0.8) -> UnitAttention:
    generator = torch.Generator().manual_seed(seed)
    layers = find_cross_attention(unet)

    def random(width: int) -> Tensor:
        return torch.randn(2, 4, width, generator=generator)

    kv = {layer.key_id: (random(layer.width), random(layer.width)) for layer in layers}
    weights = {layer.key_id: weight for layer in layers}
    return UnitAttention(f"Unit {seed}", kv, weights, Window(), mask)


def step(unet: Any, units: list[UnitAttention], inputs: dict[str, Tensor]) -> Tensor:
    with attach(unet, units, lambda _args, _kwargs: UNetCall((0, 1), 0.0)):
        return unet(**inputs)


@contextmanager
def sizes_seen(unet: nn.Module) -> Iterator[dict[str, tuple[int, int]]]:
    """The (height, width) of the map that each SpatialTransformer really works on."""
    seen: dict[str, tuple[int, int]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, path=path: seen.update({path: tuple(args[0].shape[2:])}))
        for path, module in unet.named_modules()
        if hasattr(module, "transformer_blocks")
    ]
    yield seen
    for handle in handles:
        handle.remove()


def layers_added(unet: Any, units: list[UnitAttention], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the units add to each layer, `(rows, seq, width)`, beside the text of a UNet that has none of them."""
    with into_out(unet, units) as (before, after):
        unet(**inputs)
    return {path: both - before[path] for path, both in after.items()}


# --- sizes ---


def test_levels_are_as_large_as_ldms_downsampling_makes_them() -> None:
    halve = Downsample(1, use_conv=True).to("meta")
    for height in range(1, 40):
        for width in (1, 2, 7, 16, 31, 40, 65, 168):
            level = torch.empty(1, 1, height, width, device="meta")
            for size in level_sizes(height, width)[:4]:
                assert tuple(level.shape[2:]) == size
                level = halve(level)


@pytest.mark.parametrize("pixels", [(512, 512), (832, 1216), (520, 776), (1016, 1016), (648, 1544), (8, 4096)], ids=str)
def test_no_two_levels_have_the_same_sequence(pixels: tuple[int, int]) -> None:
    sizes = level_sizes(pixels[0] // 8, pixels[1] // 8)
    assert len({height * width for height, width in sizes}) == len(sizes)
    assert sizes[-1] == (1, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layers_weights_are_the_canvas_at_the_size_it_works_on(either: Any, size: tuple[int, int]) -> None:
    """Recomputed from what each layer was given: an unmasked unit's addition times the area's mean."""
    mask, inputs = random_mask(size), inputs_of(either, size)
    with sizes_seen(either) as seen:
        whole = layers_added(either, [make_unit(either)], inputs)
    masked = layers_added(either, [make_unit(either, mask)], inputs)
    assert masked.keys() == whole.keys()
    for path, image in whole.items():
        height, width = seen[path.partition(".transformer_blocks")[0]]
        weights = nn.functional.adaptive_avg_pool2d(mask[None], (height, width)).reshape(height * width, 1)
        torch.testing.assert_close(masked[path], image * weights, atol=1e-5, rtol=1e-5)
        assert image.abs().max() > 0.1


# --- what a mask means ---


def test_a_mask_of_ones_is_no_mask(either: Any) -> None:
    inputs = inputs_of(either, (9, 12))
    ones = torch.ones(canvas((9, 12)))
    assert torch.equal(step(either, [make_unit(either, ones)], inputs), step(either, [make_unit(either)], inputs))


def test_a_mask_of_zeros_is_no_unit(either: Any) -> None:
    inputs = inputs_of(either, (9, 12))
    zeros = torch.zeros(canvas((9, 12)))
    assert torch.equal(step(either, [make_unit(either, zeros)], inputs), either(**inputs))
    other = make_unit(either, seed=1)
    together = step(either, [make_unit(either, zeros), other], inputs)
    assert torch.equal(together, step(either, [make_unit(either, seed=1)], inputs))


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_a_mask_and_its_complement_are_the_whole(either: Any, size: tuple[int, int]) -> None:
    """One reference in two units whose masks add up to one is that reference everywhere."""
    inputs, mask = inputs_of(either, size), random_mask(size)
    parts = [make_unit(either, mask), make_unit(either, 1 - mask)]
    sums = layers_added(either, parts, inputs)
    for path, image in layers_added(either, [make_unit(either)], inputs).items():
        torch.testing.assert_close(sums[path], image, atol=1e-5, rtol=1e-5)
    whole = step(either, [make_unit(either)], inputs)
    parts = [make_unit(either, mask), make_unit(either, 1 - mask)]
    torch.testing.assert_close(step(either, parts, inputs), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (13, 24)], ids=str)
def test_two_units_in_two_regions_do_not_meet(either: Any, size: tuple[int, int]) -> None:
    """Left of the edge, every layer gets what the left unit alone adds, to the last bit; right of it, the other's."""
    inputs, left = inputs_of(either, size), left_half(size)
    with sizes_seen(either) as seen:
        alone = [layers_added(either, [make_unit(either, seed=seed)], inputs) for seed in (1, 2)]
    both = layers_added(either, [make_unit(either, left, 1), make_unit(either, 1 - left, 2)], inputs)
    for path, together in both.items():
        height, width = seen[path.partition(".transformer_blocks")[0]]
        level = averaged(left, (height, width)).flatten()
        for place, core in ((0, level == 1), (1, level == 0)):
            assert core.any()
            torch.testing.assert_close(together[:, core], alone[place][path][:, core], atol=1e-6, rtol=1e-5)
        assert (alone[0][path] - alone[1][path]).abs().max() > 0.1


def test_the_order_of_units_in_regions_does_not_matter(either: Any) -> None:
    size = (13, 24)
    inputs, left = inputs_of(either, size), left_half(size)

    def units() -> list[UnitAttention]:
        return [make_unit(either, left, 1), make_unit(either, 1 - left, 2, weight=-0.5), make_unit(either, seed=3)]

    torch.testing.assert_close(
        step(either, units(), inputs), step(either, units()[::-1], inputs), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossAttention, "forward", fused)
    unet = cast_unet(sd15_unet(), dtype)
    inputs = {name: tensor.to(dtype) for name, tensor in inputs_of(unet, (8, 8)).items()}
    mask = left_half((8, 8))
    out = step(unet, [make_unit(unet, mask)], inputs)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert (out - unet(**inputs)).abs().max() > 0.01


def test_weights_are_made_once_for_each_level() -> None:
    mask = CanvasMask("Unit 1", random_mask((8, 12)))
    made = [mask.weights(torch.zeros(2, length, 32)) for length in (96, 24, 96, 6, 24)]
    assert made[0] is made[2]
    assert made[1] is made[4]
    assert mask.weights(torch.zeros(2, 96, 32, dtype=torch.float64)) is not made[0]
    assert mask.weights(torch.zeros(2, 96, 32)) is made[0]


# --- refusals ---


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (8, 16), (17, 16)], ids=str)
def test_a_tile_is_refused(unet: Any, size: tuple[int, int]) -> None:
    unit = make_unit(unet, left_half((16, 16)), seed=2)
    with pytest.raises(UnsupportedHostStateError, match=rf"Unit 2.*128x128.*{8 * size[1]}x{8 * size[0]}"):
        step(unet, [unit], inputs_of(unet, size))


def test_a_tile_is_nothing_to_units_that_act_everywhere_or_not_now(unet: Any) -> None:
    late = make_unit(unet, left_half((16, 16)))._replace(window=Window(0.5, 1.0))
    step(unet, [make_unit(unet, seed=1), late], inputs_of(unet, (8, 8)))


def test_a_layer_of_another_size_is_refused(unet: Any) -> None:
    """As Kohya's HRFix does it: the map shrinks inside the UNet and grows back."""
    block = unet.input_blocks[2]

    def shrink(_m: Any, args: Any) -> Any:
        return (nn.functional.interpolate(args[0], (5, 5)), *args[1:])

    def grow(_m: Any, _args: Any, output: Tensor) -> Tensor:
        return nn.functional.interpolate(output, (16, 16))

    handles = [block.register_forward_pre_hook(shrink), block.register_forward_hook(grow)]
    step(unet, [make_unit(unet)], inputs_of(unet, (16, 16)))
    with pytest.raises(UnsupportedHostStateError, match=r"25 places.*16x16, 8x8, 4x4"):
        step(unet, [make_unit(unet, left_half((16, 16)))], inputs_of(unet, (16, 16)))
    for handle in handles:
        handle.remove()


def test_a_call_without_latents_is_refused(unet: Any) -> None:
    inputs = inputs_of(unet, (16, 16))
    with (
        attach(unet, [make_unit(unet, left_half((16, 16)))], lambda _a, _k: UNetCall((0, 1), 0.0)),
        pytest.raises(UnsupportedHostStateError, match="latents"),
    ):
        unet(inputs["x"].flatten(2), inputs["timesteps"], context=inputs["context"])
