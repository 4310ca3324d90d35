"""Image attention: softmax(q k^T / sqrt(d)) v over one unit's image tokens, for the rows of one UNet call.

Used by `core.attach` alone. Formula: IP-Adapter (Ye et al. 2023), decoupled cross-attention.
"""

from __future__ import annotations

from itertools import groupby
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F

from ..library.errors import UnexplainedRowsError
from .schedule import COND, UNCOND

KV = dict[int, tuple[Tensor, Tensor]]


class RowGroups:
    """How the rows of a UNet call pick their K and V; made once per distinct sequence of rows.

    Neighbouring rows of one kind share K and V, and a query attends alone, so such rows are read as one longer
    sequence: (cond, cond, uncond, uncond) costs no copy of K and V. Only orders that are no slice of (cond, uncond)
    gather.
    """

    def __init__(self, rows: tuple[int, ...]) -> None:
        if not set(rows) <= {COND, UNCOND}:
            raise UnexplainedRowsError(f"A UNet call has rows {rows}; only {COND} (prompt) and {UNCOND} are known.")
        runs = [len(tuple(run)) for _, run in groupby(rows)]
        self.rows = len(rows)
        self.run = gcd(*runs) or 1
        self.kinds = rows[:: self.run]
        self.is_slice = self.kinds in ((0, 1), (0,), (1,))
        self._index: Tensor | None = None

    def pick(self, kv: Tensor) -> Tensor:
        """`(2, ...)` by kind -> `(groups, ...)` in the order of the call; a view where `is_slice`."""
        if self.is_slice:
            return kv[self.kinds[0] : self.kinds[-1] + 1]
        if self._index is None or self._index.device != kv.device:
            self._index = torch.tensor(self.kinds, device=kv.device)
        return kv.index_select(0, self._index)


class PlacedTokens:
    """One unit's K and V for one layer, kept once, in the dtype and on the device of the layer's queries.

    `store[key_id]` is the pair `(2, tokens, width)` (cond, uncond). At first use it is replaced by a cast copy, so
    that the originals are freed: memory is held once.
    """

    def __init__(self, store: KV, key_id: int, heads: int) -> None:
        self._store = store
        self._key_id = key_id
        self._heads = heads
        self._placed: Tensor | None = None
        self._groups: RowGroups | None = None
        self._picked: tuple[Tensor, Tensor] | None = None

    def attend(self, query: Tensor, groups: RowGroups) -> Tensor:
        """Attention of `query` `(rows, seq, width)` over this unit's tokens, `(rows, seq, width)`, not weighted."""
        key, value = self._pick(query, groups)
        rows, length, width = query.shape
        split = (len(groups.kinds), groups.run * length, self._heads, width // self._heads)
        out = F.scaled_dot_product_attention(query.reshape(split).transpose(1, 2), key, value)
        return out.transpose(1, 2).reshape(rows, length, width)

    def _pick(self, query: Tensor, groups: RowGroups) -> tuple[Tensor, Tensor]:
        """K and V `(groups, heads, tokens, head_dim)`; views are remembered for the next step, copies are not."""
        placed = self._placed
        if placed is None or placed.dtype != query.dtype or placed.device != query.device:
            placed = self._placed = self._place(query)
            self._picked = None
        if self._picked is None or self._groups is not groups:
            key, value = groups.pick(placed).unbind(1)
            if not groups.is_slice:
                return key, value
            self._groups, self._picked = groups, (key, value)
        return self._picked

    def _place(self, query: Tensor) -> Tensor:
        """K and V as one tensor `(2 kinds, K|V, heads, tokens, head_dim)`, so that one gather moves both."""
        pair = self._store[self._key_id]
        placed = torch.stack([t.to(device=query.device, dtype=query.dtype) for t in pair], dim=1)
        self._store[self._key_id] = (placed[:, 0], placed[:, 1])
        kinds, _, tokens, width = placed.shape
        return placed.view(kinds, 2, tokens, self._heads, width // self._heads).transpose(2, 3)
