"""What units add to each cross-attention of a UNet, each layer seeing the plain UNet's input. For tests of masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lib_ipadapter.core.attach import UnitAttention, attach
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.schedule import UNetCall

ROWS = (0, 1)


@contextmanager
def into_out(unet: nn.Module, units: Sequence[UnitAttention]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What goes into each layer's `to_out`, `(rows, seq, width)` by the layer's path: without the units, and with them.

    The units' sum is taken away again, so that no layer sees what an earlier one was given.
    """
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    layers = find_cross_attention(unet)

    def outer(path: str) -> Any:
        return lambda _m, args: before.update({path: args[0]})

    def inner(path: str) -> Any:
        def take(_m: Any, args: Any) -> Any:
            after[path] = args[0]
            return (before[path],)

        return take

    handles = [layer.module.to_out[0].register_forward_pre_hook(outer(layer.path)) for layer in layers]  # type: ignore[index]
    with attach(unet, units, lambda _args, _kwargs: UNetCall(ROWS, 0.0)):
        handles += [layer.module.to_out[0].register_forward_pre_hook(inner(layer.path)) for layer in layers]  # type: ignore[index]
        yield before, after
    for handle in handles:
        handle.remove()
