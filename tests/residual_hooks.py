"""A ControlNet's residuals in ldm's UNet, written out for tests: at the skips and after the middle block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def add_residuals(unet: Any, down: Sequence[Tensor], mid: Tensor) -> list[Any]:
    """Handles of hooks that add one call's residuals; the caller removes them."""

    def add(residual: Tensor) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            joined = args[0].clone()
            joined[:, -residual.shape[1] :] += residual
            return (joined, *args[1:])

        return hook

    pairs = zip(unet.output_blocks, reversed(down), strict=True)
    handles = [block.register_forward_pre_hook(add(residual)) for block, residual in pairs]
    return [*handles, unet.middle_block.register_forward_hook(lambda module, args, out: out + mid)]
