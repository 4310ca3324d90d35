"""Adding residuals to the real ldm UNet: places, rows, windows, regions, several nets, refusals, and nothing left."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.core.attach import attach
from lib_ipadapter.core.identity_net import IdentityNet, build_identity_net
from lib_ipadapter.core.residuals import UNetResiduals, UnitResiduals, attach_residuals
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall, Window
from lib_ipadapter.library.errors import UnexplainedRowsError, UnsupportedHostStateError, WrongBaseError
from tests.core.test_attach import make_unit, pick, snapshot
from tests.unets import sd15_unet, sdxl_unet, unet_inputs

from .random_controlnets import SD15, SDXL, narrow, random_controlnet

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DEPTHS = {2: 1, 4: 1}
SIDE = 16


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def small_sdxl(**options: Any) -> Any:
    return sdxl_unet(label_dim=24, depths=DEPTHS, **options)


@pytest.fixture(scope="module")
def sd15() -> tuple[Any, IdentityNet]:
    return sd15_unet(), build_identity_net(narrow(SD15), random_controlnet(narrow(SD15)))


@pytest.fixture(scope="module")
def sdxl() -> tuple[Any, IdentityNet]:
    spec = narrow(SDXL, y_dim=24, depths=1)
    return small_sdxl(), build_identity_net(spec, random_controlnet(spec))


@pytest.fixture(params=["SD1", "SDXL"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, IdentityNet]:
    return request.getfixturevalue({"SD1": "sd15", "SDXL": "sdxl"}[request.param])


def person(net: IdentityNet, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE), **changed: Any) -> UnitResiduals:
    generator = torch.Generator().manual_seed(seed)
    hint = torch.rand(1, 3, 8 * size[0], 8 * size[1], generator=generator)
    context = torch.randn(2, 16, net.spec.context_dim, generator=generator)
    return UnitResiduals(f"person {seed}", net, hint, context, **changed)


def expected_residuals(unit: UnitResiduals, rows: tuple[int, ...], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The unit's residuals for these rows, written out."""
    context = torch.stack([unit.context[kind] for kind in rows])
    hint = unit.net.embed_hint(unit.hint)
    down, mid = unit.net(inputs["x"], inputs["timesteps"], context, hint, inputs.get("y"), strength=unit.strength)
    return [*down, mid]


def controlled(unet: Any, residuals: list[Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """What the UNet gives with residuals added to its skip connections and middle: ldm's forward, written out."""
    from ldm.modules.diffusionmodules.util import timestep_embedding

    emb = unet.time_embed(timestep_embedding(inputs["timesteps"], unet.model_channels))
    if "y" in inputs:
        emb = emb + unet.label_emb(inputs["y"])
    h, skips = inputs["x"], []
    for block in unet.input_blocks:
        h = block(h, emb, inputs["context"])
        skips.append(h)
    h = unet.middle_block(h, emb, inputs["context"]) + residuals[-1]
    for block, skip, residual in zip(unet.output_blocks, reversed(skips), reversed(residuals[:-1]), strict=True):
        h = block(torch.cat([h, skip + residual], dim=1), emb, inputs["context"])
    return unet.out(h)


def step(
    unet: Any, units: list[UnitResiduals], rows: tuple[int, ...], inputs: dict[str, Tensor], fraction: float = 0.0
) -> Tensor:
    with attach_residuals(unet, units, lambda _args, _kwargs: UNetCall(rows, fraction)):
        return unet(**inputs)


# --- what it computes ---


@pytest.mark.parametrize("rows", [(COND, UNCOND), (UNCOND, COND, COND), (COND,)], ids=str)
def test_residuals_go_to_the_skips_and_the_middle(pair: tuple[Any, IdentityNet], rows: tuple[int, ...]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet, len(rows))
    unit = person(net, strength=0.8)
    expected = controlled(unet, expected_residuals(unit, rows, inputs), inputs)
    found = step(unet, [unit], rows, inputs)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - unet(**inputs)).abs().max() > 0.1


def test_every_place_gets_its_own(sd15: tuple[Any, IdentityNet]) -> None:
    """Seen at each layer: the last channels change by that place's residual, what came from below does not."""
    unet, net = sd15
    inputs, unit = unet_inputs(unet), person(net)
    seen: dict[int, list[Tensor]] = {}
    layers = [block[0] for block in unet.output_blocks]
    before = [
        layer.register_forward_pre_hook(lambda _m, args, n=n: seen.setdefault(n, []).append(args[0]))
        for n, layer in enumerate(layers)
    ]
    with attach_residuals(unet, [unit], lambda _a, _k: UNetCall((0, 1), 0.0)):
        after = [
            layer.register_forward_pre_hook(lambda _m, args, n=n: seen[n].append(args[0]))
            for n, layer in enumerate(layers)
        ]
        unet(**inputs)
    for handle in before + after:
        handle.remove()
    residuals = expected_residuals(unit, (0, 1), inputs)
    assert len(seen) == 12
    for number, (untouched, changed) in seen.items():
        residual = residuals[11 - number]
        width = residual.shape[1]
        assert torch.equal(changed[:, :-width], untouched[:, :-width])
        torch.testing.assert_close(changed[:, -width:] - untouched[:, -width:], residual, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "calls", [[[0, 2]], [[2, 0]], [[0], [2]], [[2, 3, 0, 1]], [[0, 2, 1, 3]], [[2, 0, 1]]], ids=str
)
def test_how_the_host_splits_and_orders_rows_does_not_matter(
    pair: tuple[Any, IdentityNet], calls: list[list[int]]
) -> None:
    unet, net = pair
    inputs, kinds = unet_inputs(unet, rows=4), (0, 0, 1, 1)
    unit = person(net)
    whole = step(unet, [unit], kinds, inputs)
    for rows in calls:
        part = step(unet, [unit], tuple(kinds[row] for row in rows), pick(inputs, rows))
        torch.testing.assert_close(part, whole[rows], atol=1e-4, rtol=0)


def test_prompt_and_negative_rows_get_their_own_tokens(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    out = step(unet, [person(net)], (0, 1), pick(unet_inputs(unet), [0, 0]))
    assert (out[0] - out[1]).abs().max() > 0.01


def test_arguments_by_position(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet)
    expected = step(unet, [person(net)], (0, 1), inputs)
    with attach_residuals(unet, [person(net)], lambda _a, _k: UNetCall((0, 1), 0.0)):
        assert torch.equal(unet(*inputs.values()), expected)


def test_an_inpainting_unet(sd15: tuple[Any, IdentityNet]) -> None:
    net = sd15[1]
    unet = sd15_unet(in_channels=9)
    inputs = unet_inputs(unet)
    unit = person(net)
    residuals = expected_residuals(unit, (0, 1), inputs | {"x": inputs["x"][:, :4]})
    torch.testing.assert_close(step(unet, [unit], (0, 1), inputs), controlled(unet, residuals, inputs), **CLOSE)


@pytest.mark.parametrize("size", [(9, 16), (16, 13)], ids=str)
def test_odd_sizes(size: tuple[int, int], sdxl: tuple[Any, IdentityNet]) -> None:
    """ldm's own UNet cannot double odd sides back, hosts' can: its way up is cut short here as theirs is."""
    unet, net = sdxl
    inputs = unet_inputs(unet)
    inputs["x"] = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    unit = person(net, size=size)
    residuals = expected_residuals(unit, (0, 1), inputs)
    sizes = [tuple(residual.shape[-2:]) for residual in reversed(residuals[:-1])]
    cuts: list[Any] = []
    for place, block in enumerate(unet.output_blocks[:-1]):
        following = sizes[place + 1]
        cuts.append(block.register_forward_hook(lambda _m, _a, out, to=following: out[..., : to[0], : to[1]]))
    found, expected = step(unet, [unit], (0, 1), inputs), controlled(unet, residuals, inputs)
    for cut in cuts:
        cut.remove()
    torch.testing.assert_close(found, expected, **CLOSE)


# --- strengths, windows, rows left alone ---


def test_strength_zero_is_no_unit(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet)
    plain = unet(**inputs)
    before = snapshot(unet)
    scope = attach_residuals(unet, [person(net, strength=0.0)], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert [path for path, module in snapshot(unet).items() if module != before[path]] == [""]
    assert torch.equal(unet(**inputs), plain)
    scope.close()


@pytest.mark.parametrize(("fraction", "acts"), [(0.0, False), (0.2, True), (0.59, True), (0.6, False), (1.0, False)])
def test_window(fraction: float, acts: bool, sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    inputs = unet_inputs(unet)
    found = step(unet, [person(net, window=Window(0.2, 0.6))], (0, 1), inputs, fraction)
    assert torch.equal(found, unet(**inputs)) is not acts


def test_a_net_does_not_run_outside_its_window(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    runs: list[int] = []
    handle = net.register_forward_hook(lambda *_: runs.append(1))
    step(unet, [person(net, window=Window(0.5, 1.0))], (0, 1), unet_inputs(unet), 0.4)
    step(unet, [person(net, cond_only=True)], (1, 1), unet_inputs(unet))
    assert not runs
    step(unet, [person(net, window=Window(0.5, 1.0))], (0, 1), unet_inputs(unet), 0.5)
    handle.remove()
    assert runs == [1]


@pytest.mark.parametrize("rows", [(0, 1), (1, 0, 1, 0)], ids=str)
def test_only_the_prompts_rows(rows: tuple[int, ...], pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet, len(rows))
    ran: list[int] = []
    handle = net.register_forward_pre_hook(lambda _m, args: ran.append(len(args[0])))
    found = step(unet, [person(net, cond_only=True)], rows, inputs)
    handle.remove()
    whole, plain = step(unet, [person(net)], rows, inputs), unet(**inputs)
    for place, kind in enumerate(rows):
        torch.testing.assert_close(found[place], (plain if kind == UNCOND else whole)[place], atol=1e-4, rtol=0)
    assert ran == [rows.count(COND)]


def test_the_hint_is_embedded_once(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    runs: list[int] = []
    handle = net.controlnet_cond_embedding.register_forward_hook(lambda *_: runs.append(1))
    with attach_residuals(unet, [person(net)], lambda _a, _k: UNetCall((0, 1), 0.0)):
        for _ in range(3):
            unet(**unet_inputs(unet))
    handle.remove()
    assert runs == [1]


# --- several ---


def test_several_nets_sum_in_any_order(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    other = build_identity_net(narrow(SD15), random_controlnet(narrow(SD15), seed=7))
    inputs = unet_inputs(unet)
    units = [person(net, strength=0.5), person(other, 1, strength=1.5), person(net, 2, cond_only=True)]
    parts = [expected_residuals(unit, (0, 1), inputs) for unit in units]
    for residual in parts[2]:
        residual[1] = 0
    expected = controlled(unet, [sum(each) for each in zip(*parts, strict=True)], inputs)
    for order in (units, units[::-1]):
        torch.testing.assert_close(step(unet, order, (0, 1), inputs), expected, **CLOSE)
    pair = units[:2]
    assert torch.equal(step(unet, pair, (0, 1), inputs), step(unet, pair[::-1], (0, 1), inputs))


def test_it_sums_with_what_another_extension_adds(sd15: tuple[Any, IdentityNet]) -> None:
    """Another extension's hooks on the same places: what Forge and the ControlNet extension add, they add there."""
    unet, net = sd15
    inputs = unet_inputs(unet)
    other = expected_residuals(person(net, 5), (0, 1), inputs)
    mine = person(net, 6)
    handles = [unet.middle_block.register_forward_hook(lambda _m, _a, out: out + other[-1])]
    for place, block in enumerate(unet.output_blocks):
        residual = other[11 - place]

        def add(_module: Any, args: Any, residual: Tensor = residual) -> Any:
            joined = args[0].clone()
            joined[:, -residual.shape[1] :] += residual
            return (joined, *args[1:])

        handles.append(block.register_forward_pre_hook(add))
    found = step(unet, [mine], (0, 1), inputs)
    for handle in handles:
        handle.remove()
    both = [a + b for a, b in zip(other, expected_residuals(mine, (0, 1), inputs), strict=True)]
    torch.testing.assert_close(found, controlled(unet, both, inputs), **CLOSE)
    assert (step(unet, [mine], (0, 1), inputs) - found).abs().max() > 0.01


def halves(width: int = 16, height: int = 16) -> tuple[Tensor, Tensor]:
    left = torch.zeros(height, width)
    left[:, : width // 2] = 1
    return left, 1 - left


def places(unet: Any, units: list[UnitResiduals], inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the units add at each place, middle last."""
    residuals = UNetResiduals(unet, units)
    residuals.begin(UNetCall((0, 1), 0.0), (), inputs)
    total = residuals.current()
    assert total is not None
    assert total.mid is not None
    return [*total.down, total.mid]


def test_two_people_in_two_regions_keep_to_themselves(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet)
    left, right = halves()
    first, second = person(net, 1, mask=left), person(net, 2, mask=right)
    both = places(unet, [first, second], inputs)
    assert all(map(torch.equal, both, places(unet, [second, first], inputs)))
    alone = [expected_residuals(unit._replace(mask=None), (0, 1), inputs) for unit in (first, second)]
    for found, one, other in zip(both, *alone, strict=True):
        half = found.shape[-1] // 2
        assert torch.equal(found[..., :half], one[..., :half])
        assert torch.equal(found[..., half:], other[..., half:])


def test_a_region_is_averaged_to_every_level(sdxl: tuple[Any, IdentityNet]) -> None:
    unet, net = sdxl
    inputs = unet_inputs(unet)
    inputs["x"] = inputs["x"][..., :13]
    mask = torch.rand(104, 104, generator=torch.Generator().manual_seed(2))[:, :52]
    unit = person(net, size=(16, 13), mask=mask)
    found = places(unet, [unit], inputs)
    plain = expected_residuals(unit._replace(mask=None), (0, 1), inputs)
    sizes = [tuple(residual.shape[-2:]) for residual in found]
    assert sizes == [(16, 13)] * 3 + [(8, 7)] * 3 + [(4, 4)] * 4
    for masked, whole in zip(found, plain, strict=True):
        shares = nn.functional.adaptive_avg_pool2d(mask[None, None], masked.shape[-2:])
        torch.testing.assert_close(masked, whole * shares, **CLOSE)


def test_beside_image_attention_the_rows_are_read_once(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs = unet_inputs(unet)
    reads: list[int] = []

    def read(_args: Any, _kwargs: Any) -> UNetCall:
        reads.append(1)
        return UNetCall((0, 1), 0.0)

    unit, face = person(net), make_unit(unet)
    with attach(unet, [face], read, companions=[UNetResiduals(unet, [unit])]):
        found = unet(**inputs)
    assert reads == [1]
    with attach(unet, [face], read), attach_residuals(unet, [unit], read):
        torch.testing.assert_close(unet(**inputs), found, **CLOSE)
    assert (found - step(unet, [unit], (0, 1), inputs)).abs().max() > 0.01


def test_a_call_inside_a_call(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    inputs, unit = unet_inputs(unet), person(net)
    calls = iter([UNetCall((0, 1), 0.0), UNetCall((1,), 0.0)])
    inner: list[Tensor] = []

    def nested(*_: Any) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = unet(**pick(inputs, [1]))

    handle = unet.output_blocks[5].register_forward_pre_hook(nested)
    with attach_residuals(unet, [unit], lambda _a, _k: next(calls)):
        outer = unet(**inputs)
    handle.remove()
    expected = step(unet, [unit], (0, 1), inputs)
    torch.testing.assert_close(outer, expected, **CLOSE)
    torch.testing.assert_close(inner[0], expected[1:], atol=1e-4, rtol=0)


def test_blocks_whose_layers_the_host_calls_itself(sd15: tuple[Any, IdentityNet], monkeypatch: Any) -> None:
    """reForge and Classic run the layers of a block in a loop of their own, without calling the block."""
    unet, net = sd15
    inputs = unet_inputs(unet)
    expected = step(unet, [person(net)], (0, 1), inputs)

    def loop(block: Any, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in block:
            if hasattr(layer, "emb_layers"):
                h = layer(h, emb)
            else:
                h = layer(h, context) if hasattr(layer, "transformer_blocks") else layer(h)
        return h

    def forward(self: Any, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        from ldm.modules.diffusionmodules.util import timestep_embedding

        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        skips = [x]
        for block in self.input_blocks:
            skips.append(loop(block, skips[-1], emb, context))
        h = loop(self.middle_block, skips[-1], emb, context)
        for block in self.output_blocks:
            h = loop(block, torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)

    monkeypatch.setattr(type(unet), "forward", forward)
    torch.testing.assert_close(step(unet, [person(net)], (0, 1), inputs), expected, **CLOSE)


# --- nothing left behind ---


def test_closing_leaves_the_unet_as_it_was(pair: tuple[Any, IdentityNet]) -> None:
    unet, net = pair
    inputs, before = unet_inputs(unet), snapshot(unet)
    plain = unet(**inputs)
    scope = attach_residuals(unet, [person(net)], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert not torch.equal(unet(**inputs), plain)
    scope.close()
    scope.close()
    assert snapshot(unet) == before
    assert torch.equal(unet(**inputs), plain)


def test_a_failed_call_leaves_the_next_one_right(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    inputs, unit = unet_inputs(unet), person(net)
    expected = step(unet, [unit], (0, 1), inputs)
    residuals = UNetResiduals(unet, [unit])
    scope = attach(unet, (), lambda _a, _k: UNetCall((0, 1), 0.0), companions=[residuals])
    with scope, warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of what a hook raises after a failure
        for part in (unet.input_blocks[3], unet.output_blocks[4], net.mid_block):
            handle = part.register_forward_pre_hook(_fail)
            with pytest.raises(RuntimeError, match="boom"):
                unet(**inputs)
            handle.remove()
            assert residuals.current() is None
        assert torch.equal(unet(**inputs), expected)


def _fail(*_: Any) -> None:
    raise RuntimeError("boom")


# --- refusals ---


def test_another_canvas_is_refused(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    with pytest.raises(UnsupportedHostStateError, match="picture of 192x128 and the UNet was called for 128x128"):
        step(unet, [person(net, size=(16, 24))], (0, 1), unet_inputs(unet))


def test_a_wrong_number_of_rows_is_refused(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    with pytest.raises(UnexplainedRowsError, match="2 rows and 3"):
        step(unet, [person(net)], (0, 1, 1), unet_inputs(unet))


def test_a_reshaped_unet_is_refused(sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15

    def enlarge(_module: Any, _args: Any, out: Tensor) -> Tensor:
        return out.repeat_interleave(2, -1).repeat_interleave(2, -2)

    handles = [
        unet.input_blocks[3].register_forward_hook(lambda _m, _a, out: out[..., ::2, ::2]),
        unet.output_blocks[8].register_forward_hook(enlarge),
    ]
    unet(**unet_inputs(unet))  # the UNet itself runs
    with pytest.raises(UnsupportedHostStateError, match=r"middle_block got .*HRFix"):
        step(unet, [person(net)], (0, 1), unet_inputs(unet))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("skipped", ["all", "some"])
def test_a_unet_that_skips_the_places_is_refused(
    skipped: str, sd15: tuple[Any, IdentityNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, net = sd15
    if skipped == "all":
        monkeypatch.setattr(type(unet), "forward", lambda _self, x, **_: x)
    else:
        layer = unet.output_blocks[3][0]
        monkeypatch.setattr(unet.output_blocks[3], "forward", lambda h, *_: layer.forward(h, torch.zeros(2, 128)))
    with pytest.raises(UnsupportedHostStateError, match="13 of its 13" if skipped == "all" else "1 of its 13"):
        step(unet, [person(net)], (0, 1), unet_inputs(unet))
    step(unet, [person(net, window=Window(0.5, 1.0))], (0, 1), unet_inputs(unet))


@pytest.mark.parametrize("damage", ["widths", "heads", "context", "kinds"])
def test_a_net_that_does_not_fit_is_refused(damage: str, sd15: tuple[Any, IdentityNet]) -> None:
    unet, net = sd15
    before = snapshot(unet)
    unit, words = person(net), "face tokens are"
    if damage == "widths":
        unet, before, words = (wide := sd15_unet(64)), snapshot(wide), "skip connections"
    elif damage == "heads":
        unit, words = person(build_identity_net(replace(net.spec, heads=(4, 4, 4, 4)), net.state_dict())), "heads"
    else:
        shape = (2, 16, 2048) if damage == "context" else (1, 16, 768)
        unit = unit._replace(context=torch.zeros(shape))
    with pytest.raises(WrongBaseError, match=words):
        attach_residuals(unet, [unit], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert snapshot(unet) == before
    attach_residuals(unet, [unit._replace(strength=0.0)], lambda _a, _k: UNetCall((0, 1), 0.0)).close()
