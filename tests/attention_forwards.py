"""Replacements of `CrossAttention.forward` with the call patterns of the hosts' optimisations; all give one result.

Tests and the bench put them on the class, as A1111 does, or on one instance, as sd-webui-controlnet does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def _split(attention: Any, tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _project(attention: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    context = x if context is None else context
    return attention.to_q(x), attention.to_k(context), attention.to_v(context)


def fused(self: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    """torch's fused attention; the output layers are called one by one."""
    q, k, v = (_split(self, t) for t in _project(self, x, context))
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return self.to_out[1](self.to_out[0](out))


def sliced(self: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    """Slices of the queries in float32, written into one buffer; `to_out` is called as a whole."""
    q, k, v = (_split(self, t).float() for t in _project(self, x, context))
    out = q.new_empty(q.shape)
    for start in range(0, q.shape[2], 48):
        part = slice(start, start + 48)
        scores = (q[:, :, part] @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        out[:, :, part] = scores.softmax(-1) @ v
    return self.to_out(out.transpose(1, 2).flatten(2).to(x.dtype))


def unpacked(self: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    """Heads folded into the batch; `to_out` is unpacked, as the sub-quadratic optimisation does."""
    q, k, v = (_split(self, t).flatten(0, 1) for t in _project(self, x, context))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    out = (scores.softmax(-1) @ v).unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
    out_proj, dropout = self.to_out
    return dropout(out_proj(out))


FORWARDS: dict[str, Callable[..., Tensor]] = {"fused": fused, "sliced": sliced, "unpacked": unpacked}
