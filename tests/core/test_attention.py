"""Image attention by rows against the formula written out, and how K and V are kept."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.attention import PlacedTokens, RowGroups

HEADS, WIDTH, TOKENS = 4, 32, 5
ROWS = [
    (0, 1),
    (1, 0),
    (0,),
    (1,),
    (0, 0, 1, 1),
    (1, 1, 0, 0),
    (0, 0, 1),
    (1, 0, 0),
    (0, 1, 1),
    (0, 1, 0, 1),
    (1, 1, 1),
]


def random_store(seed: int = 0) -> dict[int, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(2, TOKENS, WIDTH, generator=generator) for _ in range(2))
    return {1: (key, value)}


def formula(query: Tensor, key: Tensor, value: Tensor, rows: tuple[int, ...]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, one row and one head at a time."""
    out = torch.empty_like(query)
    size = WIDTH // HEADS
    for row, kind in enumerate(rows):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = query[row, :, part] @ key[kind, :, part].T / size**0.5
            out[row, :, part] = scores.softmax(-1) @ value[kind, :, part]
    return out


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_every_order_of_rows_gives_the_formula(rows: tuple[int, ...]) -> None:
    store = random_store()
    key, value = store[1]
    tokens, groups = PlacedTokens(store, 1, HEADS), RowGroups(rows)
    for seed in range(2):
        query = torch.randn(len(rows), 7, WIDTH, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(tokens.attend(query, groups), formula(query, key, value, rows), atol=1e-5, rtol=0)


def test_changing_rows_from_call_to_call() -> None:
    store = random_store()
    key, value = store[1]
    tokens = PlacedTokens(store, 1, HEADS)
    for rows in [*ROWS, *reversed(ROWS)]:
        query = torch.randn(len(rows), 3, WIDTH, generator=torch.Generator().manual_seed(len(rows)))
        torch.testing.assert_close(
            tokens.attend(query, RowGroups(rows)), formula(query, key, value, rows), atol=1e-5, rtol=0
        )


def test_equal_rows_are_one_group() -> None:
    assert (RowGroups((0, 0, 1, 1)).kinds, RowGroups((0, 0, 1, 1)).run) == ((0, 1), 2)
    assert (RowGroups((0, 0, 0, 0, 1, 1)).kinds, RowGroups((0, 0, 0, 0, 1, 1)).run) == ((0, 0, 1), 2)
    assert RowGroups((1, 0)).kinds == (1, 0)


def test_the_usual_orders_copy_nothing() -> None:
    kv = torch.randn(2, 2, 3)
    for rows in [(0, 1), (0,), (1,), (0, 0, 1, 1)]:
        groups = RowGroups(rows)
        assert groups.is_slice
        assert groups.pick(kv).untyped_storage().data_ptr() == kv.untyped_storage().data_ptr()


def test_k_and_v_are_cast_once_and_the_originals_freed() -> None:
    store = random_store()
    originals = [weakref.ref(tensor) for tensor in store[1]]
    tokens = PlacedTokens(store, 1, HEADS)
    query = torch.randn(2, 7, WIDTH).bfloat16()
    tokens.attend(query, RowGroups((0, 1)))
    placed = store[1]
    assert [original() for original in originals] == [None, None]
    assert all(tensor.dtype == torch.bfloat16 and tensor.shape == (2, TOKENS, WIDTH) for tensor in placed)
    # K and V are both views of one storage of exactly their size.
    assert placed[0].untyped_storage().data_ptr() == placed[1].untyped_storage().data_ptr()
    assert placed[0].untyped_storage().nbytes() == 2 * 2 * TOKENS * WIDTH * 2
    tokens.attend(query, RowGroups((1, 0)))
    assert store[1][0] is placed[0]


def test_k_and_v_follow_the_queries() -> None:
    store = random_store()
    key, value = store[1]
    tokens = PlacedTokens(store, 1, HEADS)
    query = torch.randn(2, 7, WIDTH)
    groups = RowGroups((0, 1))
    expected = formula(query, key, value, (0, 1))
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float32, 5e-2)]:
        out = tokens.attend(query.to(dtype), groups)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=0)


def test_the_same_store_serves_a_second_attachment() -> None:
    store = random_store()
    key, value = store[1]
    query = torch.randn(2, 7, WIDTH)
    for _ in range(2):
        out = PlacedTokens(store, 1, HEADS).attend(query, RowGroups((0, 1)))
        torch.testing.assert_close(out, formula(query, key, value, (0, 1)), atol=1e-5, rtol=0)
