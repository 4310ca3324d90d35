"""What the session asks of a host's LoRA machinery. `a1111_loras.py` and `forge_loras.py` answer.

A LoRA of ours is never written into the prompt: it is put on in front of a pass and taken off after it, and the host
merges it into the weights and restores them, as it does with the LoRAs that the prompt names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ..library.errors import WrongBaseError

PREFIX = "ipadapter-"
"""What our LoRAs are called begins with this; the host takes the name for what is merged already."""


class PlacedLora(Protocol):
    """A LoRA that is on."""

    def failure(self) -> str:
        """Why the host did not apply it, although the UNet was called since; an empty string where it did."""
        ...

    def remove(self, *, sampling: bool) -> None:
        """Take it off, once or more; `sampling` says that steps without it follow in this pass."""
        ...


class HostLora(Protocol):
    """A LoRA in the host's own form, for the UNet that was loaded when it was built."""

    def put(self, strength: float, *, sampling: bool) -> PlacedLora:
        """Put it on with that strength; `sampling` says that the pass is under way (a refiner came)."""
        ...


def lora_module(*needed: str) -> Any:
    """The built-in Lora extension's module `networks` (under this name on every host), or None while it is off."""
    module = sys.modules.get("networks")
    return module if all(hasattr(module, name) for name in ("loaded_networks", *needed)) else None


def typed_loras() -> list[Path]:
    """Files of the LoRAs that the prompt (or the setting "Add network to prompt") has put on for this pass."""
    module = lora_module()
    if module is None:
        return []
    disks = [net.network_on_disk for net in module.loaded_networks if not str(net.name).startswith(PREFIX)]
    return [Path(disk.filename) for disk in disks if getattr(disk, "filename", None)]


def lora_folders() -> list[Path]:
    """Where the user keeps LoRAs."""
    from modules import shared

    folder = getattr(shared.cmd_opts, "lora_dir", None)
    return [Path(folder)] if folder else []


def split_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """From `name.lora_up.weight` to name -> part -> tensor."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in weights.items():
        name, _, part = full.partition(".")
        modules.setdefault(name, {})[part] = tensor
    return modules


def unmatched(found: int, total: int, reason: str) -> WrongBaseError:
    """The error for a LoRA of which the loaded UNet takes only a part."""
    return WrongBaseError(
        f"The adapter's LoRA changes {total} layers, and {total - found} of them do not fit the loaded checkpoint's "
        f"UNet ({reason}). Load a checkpoint of the adapter's base, or set the unit's LoRA strength to 0."
    )
