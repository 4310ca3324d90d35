"""Keeping the host's autocast out of our own networks. Used by `core.adapter` and `encoders.clip_vision`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch off the host's autocast for this device; devices that torch has no autocast for need nothing."""
    if device.type in ("cuda", "cpu", "xpu"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
