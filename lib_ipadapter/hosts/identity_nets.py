"""An IdentityNet on a host: where it rests, and how it comes to the device for a pass. `session.identity` holds them.

A1111 has no memory manager for others' nets, so the net moves itself; the Forge family's takes it along with the UNet.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.identity_net import IdentityNet, Residuals, load_identity_net
from ..core.residuals import ControlNet
from ..library.spec import ControlNetSpec

_CPU = torch.device("cpu")


class HostNet(Protocol):
    """A net that was read and is at rest."""

    @property
    def net(self) -> ControlNet:
        """What runs in a pass that was entered."""
        ...

    def enter(self, *, sampling: bool) -> None:
        """A pass is about to start, or is under way (`sampling`)."""
        ...

    def leave(self) -> None:
        """The pass is over: the device's memory is free for what comes next."""
        ...

    def release(self) -> None:
        """The job is over: nobody but the caller holds the net."""
        ...


class MovingNet:
    """A net that goes to the device of what it is called with, and back to the CPU when its pass is over.

    With `leaves` it goes back after each call, for hosts that keep even the UNet's parts there only while they run.
    """

    def __init__(self, net: IdentityNet, *, leaves: bool = False) -> None:
        self._net = net
        self._leaves = leaves
        self._device = _CPU

    @property
    def net(self) -> ControlNet:
        return self

    @property
    def spec(self) -> ControlNetSpec:
        return self._net.spec

    def enter(self, *, sampling: bool) -> None:
        """It comes with its first call."""

    def leave(self) -> None:
        self._move(_CPU)

    def release(self) -> None:
        self._move(_CPU)

    def embed_hint(self, hint: Tensor) -> Tensor:
        self._move(hint.device)
        return self._net.embed_hint(hint)

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor, y: Tensor | None, *, strength: float
    ) -> Residuals:
        self._move(x.device)
        residuals = self._net(x, timesteps, context, hint, y, strength=strength)
        if self._leaves:
            self._move(_CPU)
        return residuals

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self._net.to(device)
            self._device = device


class ManagedNet:
    """A net in the hands of the Forge family's memory manager, which loads it together with the job's UNet.

    `objects()` is the model's present `forge_objects`; `memory` the host's manager.
    """

    def __init__(self, net: IdentityNet, patcher: Any, objects: Callable[[], Any], memory: Any) -> None:
        self._net = net
        self._patcher = patcher
        self._objects = objects
        self._memory = memory
        self._places: tuple[Any, Any] | None = None

    @property
    def net(self) -> ControlNet:
        return self._net

    def enter(self, *, sampling: bool) -> None:
        """A clone of the job's patcher brings the net along; the sampler loads both, except when it is at work."""
        self.leave()
        earlier = self._objects().unet
        clone = earlier.clone()
        clone.add_extra_model_patcher_during_sampling(self._patcher)
        self._objects().unet = clone
        self._places = (earlier, clone)
        if sampling:
            self._memory.load_models_gpu([clone, self._patcher])

    def leave(self) -> None:
        """Put the earlier patcher back; where another script has cloned ours since, its clone forgets the net."""
        if self._places is None:
            return
        earlier, clone = self._places
        self._places = None
        objects = self._objects()
        if objects.unet is clone:
            objects.unet = earlier
        for patcher in (objects.unet, clone):
            extra = patcher.extra_model_patchers_during_sampling
            extra[:] = [one for one in extra if one is not self._patcher]

    def release(self) -> None:
        """The manager holds what it has loaded until it needs the room; this net is not coming back."""
        self.leave()
        let_go(self._memory, self._patcher)


def let_go(memory: Any, patcher: Any) -> None:
    """Take a patcher's net off the device and off the manager's list; reForge's has no function for it."""
    if hasattr(memory, "unload_model_clones"):
        memory.unload_model_clones(patcher)
        return
    loaded = memory.current_loaded_models
    for one in [one for one in loaded if one.model is not None and patcher.is_clone(one.model)]:
        one.model_unload()
        loaded[:] = [other for other in loaded if other is not one]


def build_managed(
    sd_model: Any, spec: ControlNetSpec, path: Path, dtype: torch.dtype, memory: Any
) -> ManagedNet:
    """Read a net on the CPU, of layers that Forge can swap one by one; reForge and Classic load it whole."""
    with _swappable(dtype):
        net = load_identity_net(spec, path, dtype=dtype)
    patcher = _patcher_module().ModelPatcher(net, load_device=memory.get_torch_device(), offload_device=_CPU)
    return ManagedNet(net, patcher, lambda: sd_model.forge_objects, memory)


def _swappable(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context in which `torch.nn`'s layers are Forge's own (backend/operations.py)."""
    try:
        operations = importlib.import_module("backend.operations")
    except ModuleNotFoundError:
        return nullcontext()
    return operations.using_forge_operations(device=_CPU, dtype=dtype, manual_cast_enabled=True)


def _patcher_module() -> Any:
    try:
        return importlib.import_module("backend.patcher.base")
    except ModuleNotFoundError:
        return importlib.import_module("ldm_patched.modules.model_patcher")
