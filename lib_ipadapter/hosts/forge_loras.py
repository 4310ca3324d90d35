"""LoRAs on the Forge family: patches of a clone of the job's UNet patcher, merged when the host loads the clone.

Source: on Forge backend/patcher/{base,lora}.py and extensions-builtin/sd_forge_lora/networks.py; on reForge and Classic
ldm_patched/modules/{model_patcher,lora}.py. The patcher that is loaded says what is merged into the net that all clones
share: after ours was taken off, the next load of another clone restores the weights. The built-in Lora extension is
not needed; it only tells what the prompt names.
"""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .loras import PREFIX, PlacedLora, split_weights, unmatched

_PLAIN_STORAGE = (torch.float32, torch.float16, torch.bfloat16)
Load = Callable[[Any], None]


class PatchLora:
    """A LoRA as the host's patches; `objects()` is the model's present `forge_objects`."""

    def __init__(self, objects: Callable[[], Any], name: str, patches: dict[Any, Any], load: Load) -> None:
        self._objects = objects
        self._name = name
        self._patches = patches
        self._load = load

    def put(self, strength: float, *, sampling: bool) -> PlacedLora:
        """A clone in the place of the job's patcher; the sampler loads it, except when it is at work already."""
        earlier = self._objects().unet
        clone = earlier.clone()
        if _takes_filename(clone):
            clone.add_patches(
                filename=self._name, patches=self._patches, strength_patch=float(strength), strength_model=1.0,
                online_mode=_online(clone),
            )  # fmt: skip
        else:
            clone.add_patches(self._patches, float(strength), 1.0)
        self._objects().unet = clone
        if sampling:
            self._load(clone)
        return _Placed(self, earlier, clone)

    def is_on(self) -> bool:
        """Whether the job's patcher, ours or a later clone of it, has these patches."""
        unet = self._objects().unet
        if _takes_filename(unet):
            return any(identifier[0] == self._name for identifier in unet.lora_patches)
        key = next(iter(self._patches))
        return any(entry[1] is self._patches[key] for entry in unet.patches.get(key, ()))

    def swap(self, clone: Any, earlier: Any, *, sampling: bool) -> None:
        """Put the earlier patcher back where the clone still is; what another script cloned of it goes with its job."""
        objects = self._objects()
        if objects.unet is clone:
            objects.unet = earlier
            if sampling:
                self._load(earlier)
        if _takes_filename(clone):
            # The host may hold the clone until something else is loaded; its tensors need not stay so long.
            for identifier in [key for key in clone.lora_patches if key[0] == self._name]:
                del clone.lora_patches[identifier]


class _Placed:
    def __init__(self, lora: PatchLora, earlier: Any, clone: Any) -> None:
        self._lora = lora
        self._earlier = earlier
        self._clone: Any = clone

    def failure(self) -> str:
        """The host merges or raises; only what stands in `forge_objects` may have been replaced."""
        if self._clone is None or self._lora.is_on():
            return ""
        return (
            "Another script replaced the UNet that the adapter's LoRA was put on, so the LoRA had no effect. Switch "
            "that script off, or set the unit's LoRA strength to 0."
        )

    def remove(self, *, sampling: bool) -> None:
        clone, self._clone = self._clone, None
        if clone is not None:
            self._lora.swap(clone, self._earlier, sampling=sampling)


def build_patches(
    sd_model: Any, name: str, weights: Mapping[str, torch.Tensor], load: Load
) -> PatchLora:
    """Turn `weights` (kohya's names) into patches of the loaded UNet; `load` brings a patcher to the device.

    Raises: WrongBaseError when a layer is missing or has another shape.
    """
    unet = sd_model.forge_objects.unet
    machinery = _machinery()
    # The second argument's default is one dict for all calls.
    keys = machinery.model_lora_keys_unet(unet.model, {})
    modules = split_weights(weights)
    missing = [module for module in modules if module not in keys]
    if missing:
        raise unmatched(len(modules) - len(missing), len(modules), f"it has no {missing[0]}")
    wanted = {module: keys[module] for module in modules}
    parameters = dict(unet.model.named_parameters())
    wrong = [module for module, key in wanted.items() if not _fits(parameters.get(key), modules[module])]
    if wrong:
        raise unmatched(len(modules) - len(wrong), len(modules), f"{wrong[0]} has another shape")
    loaded = machinery.load_lora(dict(weights), wanted)
    patches = loaded[0] if isinstance(loaded, tuple) else loaded
    if len(patches) != len(modules):
        raise unmatched(len(patches), len(modules), "the host read the rest as something else")
    # Weak, so that a checkpoint that another one replaces is not kept in memory.
    model = weakref.ref(sd_model)
    return PatchLora(lambda: _alive(model).forge_objects, PREFIX + name, patches, load)


def _alive(model: weakref.ref[Any]) -> Any:
    """The model, which outlives the pass that its LoRA is on in."""
    found = model()
    assert found is not None
    return found


def _fits(parameter: Any, parts: Mapping[str, torch.Tensor]) -> bool:
    """Packed weights (4 bits, GGUF) have another shape than the layer; the host unpacks them while it merges."""
    if parameter is None or not parameter.dtype.is_floating_point:
        return parameter is not None
    return tuple(parameter.shape) == (parts["lora_up.weight"].shape[0], parts["lora_down.weight"].shape[1])


def _takes_filename(patcher: Any) -> bool:
    """Forge names every patch; reForge and Classic do not."""
    return "filename" in inspect.signature(patcher.add_patches).parameters


def _online(patcher: Any) -> bool:
    """Whether LoRAs are added in each call, because merging would lose too much in the storage's precision.

    Source: Forge, extensions-builtin/sd_forge_lora/networks.py, load_networks.
    """
    if getattr(patcher.model, "storage_dtype", None) in _PLAIN_STORAGE:
        return False
    arguments = importlib.import_module("backend.args")
    return bool(arguments.dynamic_args.get("online_lora", False))


def _machinery() -> Any:
    """What turns a state dict into patches: Forge's own module, or that of reForge and Classic."""
    try:
        return importlib.import_module("backend.patcher.lora")
    except ModuleNotFoundError:
        return importlib.import_module("ldm_patched.modules.lora")
