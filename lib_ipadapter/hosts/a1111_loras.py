"""LoRAs on A1111: a `Network` made in memory and put on the list that the built-in Lora extension merges.

Source: extensions-builtin/Lora/networks.py: load_network (how one is made), network_apply_weights (the list's names and
strengths say what a layer's weights are; they are restored in the next forward after a change). The list is cleared
whenever the prompt's networks are activated, which is before each pass, so ours go on after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..library.errors import UnsupportedHostStateError
from .loras import PREFIX, PlacedLora, lora_module, split_weights, unmatched

# A layer in which a merge failed carries the name all the same, and would not try again: then the name is used up.
_used_up: Counter[str] = Counter()
_NEEDED = ("network", "module_types", "convert_diffusers_name_to_compvis", "extra_network_lora")


class NetworkLora:
    """A network of the host's own module types over the loaded model's layers."""

    def __init__(self, networks: Any, net: Any, digest: str) -> None:
        self._networks = networks
        self._net = net
        self._digest = digest

    def put(self, strength: float, *, sampling: bool) -> PlacedLora:
        """The list is read in each forward, so it makes no difference whether the pass is under way."""
        self._net.name = _name(self._digest)
        self._net.te_multiplier = self._net.unet_multiplier = float(strength)
        placed = _Placed(self._networks, self._net, self._digest)
        self._networks.loaded_networks.append(self._net)
        return placed


class _Placed:
    def __init__(self, networks: Any, net: Any, digest: str) -> None:
        self._networks = networks
        self._net = net
        self._digest = digest
        self._on = True
        self._failed_before = self._count()

    def failure(self) -> str:
        """The extension counts what fails in a layer and goes on; without its patch of Linear nothing happens."""
        failed = self._count() - self._failed_before
        if failed > 0:
            return (
                f"The built-in Lora extension could not merge the adapter's LoRA into {failed} of "
                f"{len(self._net.modules)} layers (out of memory?). Free some memory, or set the unit's LoRA strength "
                "to 0."
            )
        if _is_functional() or self._is_merged():
            return ""
        return (
            "The built-in Lora extension did not merge the adapter's LoRA: it was switched off while the WebUI ran. "
            "Restart the WebUI, or set the unit's LoRA strength to 0."
        )

    def remove(self, *, sampling: bool) -> None:
        """By identity: the host may have cleared the list, and others may have put theirs on it."""
        nets = self._networks.loaded_networks
        nets[:] = [net for net in nets if net is not self._net]
        if self._on and self._count() > self._failed_before:
            _used_up[self._digest] += 1
        self._on = False

    def _count(self) -> int:
        return self._networks.extra_network_lora.errors.get(self._net.name, 0)

    def _is_merged(self) -> bool:
        layer = next(iter(self._net.modules.values())).sd_module
        return any(entry[0] == self._net.name for entry in getattr(layer, "network_current_names", ()))


def build_network(sd_model: Any, name: str, weights: Mapping[str, torch.Tensor]) -> NetworkLora:
    """Make a network of `weights` (kohya's names) for the loaded model.

    Raises: UnsupportedHostStateError while the Lora extension is off; WrongBaseError when a layer is missing or has
    another shape.
    """
    networks = lora_module(*_NEEDED)
    if networks is None or networks.extra_network_lora is None:
        raise UnsupportedHostStateError(
            "The adapter's LoRA needs the WebUI's built-in Lora extension, which is switched off. Enable Lora in "
            "Extensions > Installed and restart, or set the unit's LoRA strength to 0."
        )
    if not hasattr(sd_model, "network_layer_mapping"):
        networks.assign_network_names_to_compvis_modules(sd_model)
    # Nothing on disk answers to it: what others read of a network's file is there, and empty.
    called = _name(name)
    disk = SimpleNamespace(
        name=called, alias=called, filename="", hash="", shorthash="", metadata={}, is_safetensors=False
    )
    net = networks.network.Network(called, disk)
    mapping = sd_model.network_layer_mapping
    modules = split_weights(weights)
    layers = {key: networks.convert_diffusers_name_to_compvis(key, False) for key in modules}
    missing = [key for key, layer in layers.items() if layer not in mapping]
    if missing:
        raise unmatched(len(modules) - len(missing), len(modules), f"it has no {missing[0]}")
    wrong = [key for key, parts in modules.items() if not _fits(mapping[layers[key]], parts)]
    if wrong:
        raise unmatched(len(modules) - len(wrong), len(modules), f"{wrong[0]} has another shape")
    with _Uninitialised():
        for key, parts in modules.items():
            layer = layers[key]
            made = networks.network.NetworkWeights(network_key=key, sd_key=layer, w=parts, sd_module=mapping[layer])
            net.modules[layer] = _module(networks, net, made)
    return NetworkLora(networks, net, name)


def _name(digest: str) -> str:
    times = _used_up[digest]
    return f"{PREFIX}{digest}-{times}" if times else PREFIX + digest


def _fits(layer: Any, parts: Mapping[str, torch.Tensor]) -> bool:
    shape = (parts["lora_up.weight"].shape[0], parts["lora_down.weight"].shape[1])
    weight = getattr(layer, "weight", None)
    return weight is not None and tuple(weight.shape) == shape


def _module(networks: Any, net: Any, made: Any) -> Any:
    """The first of the host's module types that takes these weights."""
    try:
        for kind in networks.module_types:
            module = kind.create_module(net, made)
            if module is not None:
                return module
    except AssertionError as error:
        # Its type of layer is not one that the extension knows: another extension replaced it.
        raise UnsupportedHostStateError(
            f"The built-in Lora extension cannot change this checkpoint's layers ({error}). Switch off the extension "
            "that quantises them, or set the unit's LoRA strength to 0."
        ) from error
    raise UnsupportedHostStateError(
        "The built-in Lora extension knows no LoRA of this kind. Update the WebUI, or set the unit's LoRA strength "
        "to 0."
    )


def _is_functional() -> bool:
    """The compatibility setting with which a LoRA is computed in each call instead of merged."""
    from modules import shared

    return bool(shared.opts.data.get("lora_functional", False))


class _Uninitialised(TorchFunctionMode):
    """Linear layers made in here get no random weights, which would be overwritten at once.

    It saves seconds with SDXL, and the job's random numbers stay what they are without us.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.init.kaiming_uniform_, torch.nn.init.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
