"""A net with options and patches; clones share the net."""

from __future__ import annotations

import copy

from backend import memory_management
from backend.patcher.lora import LoraLoader


class ModelPatcher:
    """`clone()` deep-copies `model_options`: tensors and the owners of bound methods in it included."""

    def __init__(self, model, load_device, offload_device, size: int = 0, current_device=None, **_ignored):
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.current_device = current_device or offload_device
        self.size = size or memory_management.module_size(model)
        self.lora_patches: dict[object, object] = {}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = LoraLoader(model)
        self.lora_loader: LoraLoader = model.lora_loader
        self.object_patches: dict[str, object] = {}
        self.model_options: dict[str, object] = {"transformer_options": {}}

    def model_size(self) -> int:
        """Bytes of the weights."""
        return self.size

    def memory_required(self, input_shape) -> float:
        """Bytes that a call of the net needs, roughly."""
        return self.model.memory_required(input_shape)

    def clone(self):
        """Another patcher over the same net."""
        other = type(self)(self.model, self.load_device, self.offload_device, self.size, self.current_device)
        other.lora_patches = self.lora_patches.copy()
        other.object_patches = self.object_patches.copy()
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def is_clone(self, other) -> bool:
        """Whether both are over the same net."""
        return getattr(other, "model", None) is self.model

    def add_patches(self, *, filename, patches, strength_patch: float = 1.0, strength_model: float = 1.0,
                    online_mode: bool = False) -> set[str]:
        """Note weight patches (keyword-only, as on Forge), merged when this patcher is loaded; says which fit."""
        known = {name for name, _ in self.model.named_parameters()}
        fitting = {key: patch for key, patch in patches.items() if key in known}
        self.lora_patches[(filename, strength_patch, strength_model, online_mode)] = fitting
        return set(fitting)

    def refresh_loras(self) -> None:
        """Bring the net's weights to this patcher's patches."""
        self.lora_loader.refresh(self.lora_patches)
