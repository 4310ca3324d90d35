"""Whether a job left the host as it was; the restoration and nesting tests share it as the fixture `around`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.webui.prompting import Prompting


def host() -> Any:
    from lib_ipadapter.webui.process import services

    return services().host


def unet() -> torch.nn.Module:
    loaded = host().loaded_unet()
    assert loaded is not None
    return loaded


def snapshot() -> dict[str, Any]:
    """Every attribute name and hook of every module of the UNet, and how many callbacks the host holds."""
    from modules import script_callbacks

    found: dict[str, Any] = {}
    for path, module in unet().named_modules():
        state = vars(module)
        hooks = {
            name: [id(hook) for hook in value.values() if getattr(hook, "__name__", "") != "note_unet_call"]
            for name, value in state.items()
            if name.endswith("_hooks")
        }
        # What the host's own LoRA machinery leaves on a layer once it has merged something into it.
        names = sorted(name for name in state if not name.startswith("network_"))
        found[path] = (id(module), names, hooks, type(module).forward)
    found["callbacks"] = {name: len(entries) for name, entries in script_callbacks.callback_map.items()}
    return found


class Around:
    """Runs what a test hands over between two plain pictures and two snapshots, which must be equal."""

    def __init__(self, prompting: Prompting) -> None:
        self._prompting = prompting
        self._plain = prompting.run().pixels
        self._before = snapshot()

    def __call__(self, happens: Callable[[], Any]) -> None:
        happens()
        assert snapshot() == self._before
        for p in self._prompting.jobs:
            assert "sample" not in vars(p)
        assert self._prompting.run().pixels == self._plain
        assert snapshot() == self._before
