"""Attaching units to the real ldm UNet: rows, windows, weights, refusals, and what is left behind (nothing)."""

from __future__ import annotations

import gc
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from ldm.modules.attention import CrossAttention
from torch import Tensor, nn

from lib_ipadapter.core.attach import AttachmentScope, UnitAttention, attach
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.schedule import UNetCall, Window
from lib_ipadapter.library.errors import UnexplainedRowsError, UnsupportedHostStateError, WrongBaseError
from tests.attention_forwards import FORWARDS
from tests.unets import cast_unet, sd15_unet, sdxl_unet, unet_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=[sd15_unet, sdxl_unet], ids=["SD1", "SDXL"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def unet() -> Any:
    return sd15_unet()


def make_unit(
    unet: nn.Module, weight: float = 0.8, tokens: int = 4, seed: int = 0, window: Window | None = None
) -> UnitAttention:
    generator = torch.Generator().manual_seed(seed)
    layers = find_cross_attention(unet)
    kv = {
        layer.key_id: (
            torch.randn(2, tokens, layer.width, generator=generator),
            torch.randn(2, tokens, layer.width, generator=generator),
        )
        for layer in layers
    }
    return UnitAttention(f"unit {seed}", kv, {layer.key_id: weight for layer in layers}, window or Window())


def step(
    unet: Any, units: list[UnitAttention], rows: tuple[int, ...], inputs: dict[str, Tensor], fraction: float = 0.0
) -> Tensor:
    with attach(unet, units, lambda _args, _kwargs: UNetCall(rows, fraction)):
        return unet(**inputs)


def pick(inputs: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in inputs.items()}


def snapshot(unet: nn.Module) -> dict[str, Any]:
    """Every attribute of every module; the hook dictionaries by their entries, tensors by identity."""
    return {
        path: {
            name: (type(value), list(value.items())) if isinstance(value, dict) else value
            for name, value in vars(module).items()
        }
        for path, module in unet.named_modules()
    }


# --- what it computes ---


def test_layers_add_the_weighted_attention_to_the_input_of_to_out(unet: Any) -> None:
    """One layer, the formula written out from what the layer saw."""
    layer = find_cross_attention(unet)[4]
    unit = make_unit(unet)
    key, value = unit.kv[layer.key_id]
    only = UnitAttention("one layer", unit.kv, {layer.key_id: 0.7}, Window())
    seen: dict[str, Tensor] = {}
    handles = [
        layer.module.to_q.register_forward_hook(lambda _m, _a, out: seen.update(query=out)),
        layer.module.to_out[0].register_forward_pre_hook(lambda _m, args: seen.update(before=args[0])),
    ]
    with attach(unet, [only], lambda _a, _k: UNetCall((0, 1), 0.0)):
        handles.append(layer.module.to_out[0].register_forward_pre_hook(lambda _m, args: seen.update(after=args[0])))
        unet(**unet_inputs(unet))
    for handle in handles:
        handle.remove()
    heads = layer.module.heads
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (seen["query"], key, value))
    image = ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
    torch.testing.assert_close(seen["after"], seen["before"] + 0.7 * image.transpose(1, 2).flatten(2), **CLOSE)


@pytest.mark.parametrize(
    "calls",
    [[[0, 2]], [[2, 0]], [[0], [2]], [[0, 1, 2, 3]], [[2, 3, 0, 1]], [[0, 2, 1, 3]], [[0, 1], [2, 3]], [[2, 0, 1]]],
    ids=str,
)
def test_how_the_host_splits_and_orders_rows_does_not_matter(either: Any, calls: list[list[int]]) -> None:
    """Two pictures, rows (cond, cond, uncond, uncond): every picture's rows come out the same from every call."""
    inputs = unet_inputs(either, rows=4, size=8)
    kinds = (0, 0, 1, 1)
    unit = make_unit(either)
    whole = step(either, [unit], kinds, inputs)
    for rows in calls:
        part = step(either, [unit], tuple(kinds[row] for row in rows), pick(inputs, rows))
        torch.testing.assert_close(part, whole[rows], atol=1e-4, rtol=0)


def test_cond_and_uncond_rows_get_their_own_tokens(unet: Any) -> None:
    inputs = pick(unet_inputs(unet), [0, 0])
    out = step(unet, [make_unit(unet)], (0, 1), inputs)
    assert (out[0] - out[1]).abs().max() > 0.01


def test_weight_zero_is_no_unit(either: Any) -> None:
    inputs = unet_inputs(either, size=8)
    plain = either(**inputs)
    before = snapshot(either)
    scope = attach(either, [make_unit(either, weight=0.0)], lambda _a, _k: UNetCall((0, 1), 0.0))
    hooked = [path for path, module in snapshot(either).items() if module != before[path]]
    assert hooked == [""]
    assert torch.equal(either(**inputs), plain)
    scope.close()
    other = make_unit(either, seed=1)
    inputs = unet_inputs(either, size=8)
    assert torch.equal(
        step(either, [make_unit(either, weight=0.0), other], (0, 1), inputs), step(either, [other], (0, 1), inputs)
    )


def test_only_weighted_layers_are_hooked(unet: Any) -> None:
    unit = make_unit(unet)
    chosen = UnitAttention("some layers", unit.kv, {5: 1.0, 31: -0.5, 7: 0.0}, Window())
    before = snapshot(unet)
    with attach(unet, [chosen], lambda _a, _k: UNetCall((0, 1), 0.0)):
        hooked = {path for path, module in snapshot(unet).items() if module != before[path]}
    blocks = ("input_blocks.4.1", "middle_block.1")
    inside = "transformer_blocks.0.attn2"
    assert hooked == {""} | {f"{block}.{inside}.{part}" for block in blocks for part in ("to_q", "to_out.0")}


def test_opposite_weights_cancel(unet: Any) -> None:
    inputs = unet_inputs(unet)
    out = step(unet, [make_unit(unet, 0.9), make_unit(unet, -0.9)], (0, 1), inputs)
    torch.testing.assert_close(out, unet(**inputs), atol=1e-4, rtol=0)


def test_the_order_of_units_does_not_matter(either: Any) -> None:
    inputs = unet_inputs(either, size=8)
    one, two = make_unit(either, 0.7, 4, seed=1), make_unit(either, -1.2, 16, seed=2)
    out = step(either, [one, two], (0, 1), inputs)
    torch.testing.assert_close(step(either, [two, one], (0, 1), inputs), out, atol=1e-4, rtol=0)
    assert (out - step(either, [one], (0, 1), inputs)).abs().max() > 0.01


def test_a_unit_acts_in_its_window_only(unet: Any) -> None:
    inputs = unet_inputs(unet)
    early, late = make_unit(unet, window=Window(0.0, 0.5)), make_unit(unet, seed=1, window=Window(0.5, 1.0))
    at = {fraction: step(unet, [early, late], (0, 1), inputs, fraction) for fraction in (0.0, 0.49, 0.5, 0.9)}
    assert torch.equal(at[0.0], step(unet, [make_unit(unet)], (0, 1), inputs))
    assert torch.equal(at[0.49], at[0.0])
    assert torch.equal(at[0.5], step(unet, [make_unit(unet, seed=1)], (0, 1), inputs))
    assert torch.equal(at[0.9], at[0.5])
    assert torch.equal(step(unet, [early], (0, 1), inputs, 0.5), unet(**inputs))


def test_two_scopes_add_up_and_close_in_any_order(unet: Any) -> None:
    inputs = unet_inputs(unet)
    plain, before = unet(**inputs), snapshot(unet)
    one, two = make_unit(unet, seed=1), make_unit(unet, seed=2)
    together, alone = step(unet, [one, two], (0, 1), inputs), step(unet, [two], (0, 1), inputs)
    first = attach(unet, [one], lambda _a, _k: UNetCall((0, 1), 0.0))
    second = attach(unet, [two], lambda _a, _k: UNetCall((0, 1), 0.0))
    torch.testing.assert_close(unet(**inputs), together, atol=1e-4, rtol=0)
    first.close()
    assert torch.equal(unet(**inputs), alone)
    second.close()
    assert snapshot(unet) == before
    assert torch.equal(unet(**inputs), plain)


# --- under other attention code ---


@pytest.mark.parametrize("name", FORWARDS)
def test_the_same_result_under_a_replaced_class_forward(unet: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = unet_inputs(unet)
    expected = step(unet, [make_unit(unet)], (0, 1), inputs)
    monkeypatch.setattr(CrossAttention, "forward", FORWARDS[name])
    torch.testing.assert_close(step(unet, [make_unit(unet)], (0, 1), inputs), expected, atol=1e-4, rtol=0)


def test_the_same_result_under_replaced_instance_forwards() -> None:
    unet = sd15_unet()
    inputs = unet_inputs(unet)
    expected = step(unet, [make_unit(unet)], (0, 1), inputs)
    for number, layer in enumerate(find_cross_attention(unet)):
        forward = list(FORWARDS.values())[number % len(FORWARDS)]
        layer.module.forward = MethodType(forward, layer.module)
    torch.testing.assert_close(step(unet, [make_unit(unet)], (0, 1), inputs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["fused", "sliced"])
def test_half_precision(dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossAttention, "forward", FORWARDS[name])
    unet = sd15_unet()
    inputs = unet_inputs(unet)
    difference = step(unet, [make_unit(unet)], (0, 1), inputs) - unet(**inputs)
    half = cast_unet(unet, dtype)
    inputs = {key: tensor.to(dtype) for key, tensor in inputs.items()}
    try:
        plain = half(**inputs)
    except RuntimeError as error:
        pytest.skip(f"this torch cannot run the plain UNet in {dtype} on the CPU: {error}")
    out = step(half, [make_unit(half)], (0, 1), inputs)
    assert out.dtype == dtype
    similarity = torch.cosine_similarity((out - plain).float().flatten(), difference.flatten(), dim=0)
    assert similarity > 0.98


def test_autocast(unet: Any) -> None:
    inputs = unet_inputs(unet)
    exact = step(unet, [make_unit(unet)], (0, 1), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(unet, [make_unit(unet)], (0, 1), inputs)
    assert torch.cosine_similarity(out.float().flatten(), exact.flatten(), dim=0) > 0.98


# --- what is left behind ---


def test_nothing_is_left_after_closing(either: Any) -> None:
    inputs = unet_inputs(either, size=8)
    before, plain = snapshot(either), either(**inputs)
    weights = {name: tensor.data_ptr() for name, tensor in either.state_dict().items()}
    scope = attach(either, [make_unit(either)], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert snapshot(either) != before
    assert not torch.equal(either(**inputs), plain)
    assert not scope.closed
    for _ in range(2):
        scope.close()
        assert scope.closed
        assert snapshot(either) == before
    assert {name: tensor.data_ptr() for name, tensor in either.state_dict().items()} == weights
    assert torch.equal(either(**inputs), plain)


@pytest.mark.parametrize("where", ["read_call", "block", "attention", "after"])
def test_nothing_is_left_after_an_error(unet: Any, where: str) -> None:
    inputs = unet_inputs(unet)
    before, plain = snapshot(unet), unet(**inputs)
    fail = {"now": where}
    places = {
        "block": unet.middle_block[1].transformer_blocks[0].ff,
        "attention": unet.output_blocks[4][1].transformer_blocks[0].attn2.to_k,
        "after": unet.out,
    }

    def explode(*_: Any) -> None:
        if fail["now"] == where:
            raise KeyError("boom")

    def read_call(_args: Any, _kwargs: Any) -> UNetCall:
        if where == "read_call":
            explode()
        return UNetCall((0, 1), 0.0)

    handle = places[where].register_forward_pre_hook(explode) if where in places else None
    expected = None
    with attach(unet, [make_unit(unet)], read_call):
        with pytest.raises(KeyError, match="boom"):
            unet(**inputs)
        fail["now"] = ""
        expected = unet(**inputs)
    if handle:
        handle.remove()
    torch.testing.assert_close(expected, step(unet, [make_unit(unet)], (0, 1), inputs), **CLOSE)
    assert snapshot(unet) == before
    assert torch.equal(unet(**inputs), plain)


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_no_activation_outlives_a_call(unet: Any, fails: bool) -> None:
    queries: list[weakref.ref[Tensor]] = []
    attention = find_cross_attention(unet)[7].module

    def explode(*_: Any) -> None:
        if fails:
            raise RuntimeError("out of memory")

    with attach(unet, [make_unit(unet)], lambda _a, _k: UNetCall((0, 1), 0.0)):
        handles = [
            attention.to_q.register_forward_hook(lambda _m, _a, out: queries.append(weakref.ref(out))),
            attention.to_k.register_forward_pre_hook(explode),
        ]
        # The traceback would keep the tensors of the call itself.
        failed = False
        try:
            unet(**unet_inputs(unet))
        except RuntimeError:
            failed = True
        assert failed == fails
        gc.collect()
        assert [query() for query in queries] == [None]
    for handle in handles:
        handle.remove()


def test_closing_frees_the_units(unet: Any) -> None:
    unit = make_unit(unet)
    scope = attach(unet, [unit], lambda _a, _k: UNetCall((0, 1), 0.0))
    unet(**unet_inputs(unet))
    tensor = weakref.ref(unit.kv[1][0])
    scope.close()
    del unit
    gc.collect()
    assert tensor() is None
    assert scope.closed


def test_memory_is_held_once_and_does_not_grow_with_steps(unet: Any) -> None:
    unit = make_unit(unet, tokens=16)
    held = sum(t.nbytes for pair in unit.kv.values() for t in pair)
    inputs = unet_inputs(unet)
    with attach(unet, [unit], lambda _a, _k: UNetCall((0, 1), 0.0)):
        unet(**inputs)
        first = [t.data_ptr() for pair in unit.kv.values() for t in pair]
        for _ in range(3):
            unet(**inputs)
        assert [t.data_ptr() for pair in unit.kv.values() for t in pair] == first
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for p in unit.kv.values() for t in p}
    assert sum(storages.values()) == held


def test_a_failed_attach_leaves_nothing(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(unet)
    held: list[Any] = []

    def hold(scope: AttachmentScope, handle: Any) -> None:
        scope._stack.callback(handle.remove)
        held.append(handle)
        if len(held) == 5:
            raise RuntimeError("boom")

    monkeypatch.setattr(AttachmentScope, "hold", hold)
    with pytest.raises(RuntimeError, match="boom"):
        attach(unet, [make_unit(unet)], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert snapshot(unet) == before


# --- the order of hooks, nested calls ---


def test_the_call_is_read_before_other_hooks_and_with_its_arguments(unet: Any) -> None:
    order: list[str] = []
    seen: list[Any] = []

    def read_call(args: Any, kwargs: Any) -> UNetCall:
        order.append("ours")
        seen.append((args, kwargs))
        return UNetCall((0, 1), 0.0)

    other = unet.register_forward_pre_hook(lambda *_: order.append("other"))
    inputs = unet_inputs(unet)
    with attach(unet, [], read_call):
        unet(inputs["x"], inputs["timesteps"], context=inputs["context"])
    other.remove()
    assert order == ["ours", "other"]
    assert seen[0][0][0] is inputs["x"]
    assert seen[0][1]["context"] is inputs["context"]


def test_a_call_inside_a_call(unet: Any) -> None:
    """Guidance extensions may run the UNet inside a block of it: each call keeps its own rows."""
    inputs = unet_inputs(unet)
    unit = make_unit(unet)
    calls = iter([UNetCall((0, 1), 0.0), UNetCall((1,), 0.0)])
    inner: list[Tensor] = []

    def nested(*_: Any) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = unet(**pick(inputs, [1]))

    handle = unet.input_blocks[5].register_forward_pre_hook(nested)
    with attach(unet, [unit], lambda _a, _k: next(calls)):
        outer = unet(**inputs)
    handle.remove()
    expected = step(unet, [unit], (0, 1), inputs)
    torch.testing.assert_close(outer, expected, **CLOSE)
    torch.testing.assert_close(inner[0], expected[1:], atol=1e-4, rtol=0)


# --- refusals ---


def test_rows_that_another_extension_adds_inside_attention_are_refused(unet: Any) -> None:
    attention = find_cross_attention(unet)[2].module
    handle = attention.register_forward_pre_hook(
        lambda _m, args, kwargs: ((args[0].repeat(2, 1, 1),), {"context": kwargs["context"].repeat(2, 1, 1)}),
        with_kwargs=True,
    )
    with pytest.raises(UnexplainedRowsError, match=r"input_blocks\.4.*\(4, .*2 rows"):
        step(unet, [make_unit(unet)], (0, 1), unet_inputs(unet))
    handle.remove()


def test_a_wrong_number_of_rows_is_refused(unet: Any) -> None:
    with pytest.raises(UnexplainedRowsError, match="3 rows"):
        step(unet, [make_unit(unet)], (0, 1, 1), unet_inputs(unet))


def test_a_unet_computed_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an active TensorRT engine: the module is called and its attention is not."""
    unet = sd15_unet()
    monkeypatch.setattr(type(unet), "forward", lambda _self, x, **_: x)
    with pytest.raises(UnsupportedHostStateError, match="16 hooked"):
        step(unet, [make_unit(unet)], (0, 1), unet_inputs(unet))
    inactive = make_unit(unet, window=Window(0.5, 1.0))
    step(unet, [inactive], (0, 1), unet_inputs(unet))
    step(unet, [make_unit(unet, weight=0.0)], (0, 1), unet_inputs(unet))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x, context=None: self.to_out(x @ self.to_q.weight.T),
        lambda self, x, context=None: self.to_out(self.to_out(self.to_q(x))),
    ],
    ids=["no query", "two outputs"],
)
def test_attention_that_skips_the_query_layer_is_refused(forward: Any) -> None:
    unet = sd15_unet()
    attention = find_cross_attention(unet)[0].module
    attention.forward = MethodType(forward, attention)
    with pytest.raises(UnsupportedHostStateError, match=r"input_blocks\.1.*query"):
        step(unet, [make_unit(unet)], (0, 1), unet_inputs(unet))


def test_another_layers_queries_are_not_used() -> None:
    unet = sd15_unet()
    first, second = (layer.module for layer in find_cross_attention(unet)[:2])
    first.forward = lambda x, context=None: first.to_q(x)
    second.forward = lambda x, context=None: second.to_out(x)
    with pytest.raises(UnsupportedHostStateError, match=r"input_blocks\.2.*query"):
        step(unet, [make_unit(unet)], (0, 1), unet_inputs(unet))


def test_attention_outside_a_call_is_refused(unet: Any) -> None:
    attention = find_cross_attention(unet)[0].module
    with (
        attach(unet, [make_unit(unet)], lambda _a, _k: UNetCall((0, 1), 0.0)),
        pytest.raises(UnsupportedHostStateError, match="outside"),
    ):
        attention(torch.zeros(2, 4, 32), context=torch.zeros(2, 4, 768))


@pytest.mark.parametrize("damage", ["missing", "width", "rows", "unknown layer"])
def test_a_unit_that_does_not_fit_is_refused(unet: Any, damage: str) -> None:
    unit = make_unit(unet)
    if damage == "missing":
        del unit.kv[7]
    elif damage == "unknown layer":
        unit.weights[33] = 1.0
    else:
        shape = (2, 4, 63) if damage == "width" else (1, 4, 64)
        unit.kv[7] = (torch.zeros(shape), torch.zeros(shape))
    before = snapshot(unet)
    with pytest.raises(WrongBaseError, match="layer 33" if damage == "unknown layer" else "layer 7"):
        attach(unet, [unit], lambda _a, _k: UNetCall((0, 1), 0.0))
    assert snapshot(unet) == before
