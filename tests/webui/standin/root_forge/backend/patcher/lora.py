"""LoRAs as weight patches: from a state dict to patches, and merging them when a patcher's net is loaded."""

from __future__ import annotations

import re

import torch


def model_lora_keys_unet(model, key_map={}):  # noqa: B006 (as on Forge: pass a dict of your own)
    """Map a LoRA's names to the parameters of a model around a UNet."""
    for name, _ in model.named_parameters():
        if not name.startswith("diffusion_model.") or not name.endswith(".weight"):
            continue
        layer = name.removeprefix("diffusion_model.").removesuffix(".weight")
        key_map[f"lora_unet_{layer.replace('.', '_')}"] = name
        twin = _diffusers_name(layer)
        if twin:
            key_map[f"lora_unet_{twin.replace('.', '_')}"] = name
    return key_map


def _diffusers_name(layer: str) -> str:
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.1\.(.+)", layer)
    if match and "transformer_blocks" in match[3]:
        side, number = ("down", int(match[2]) - 1) if match[1] == "input" else ("up", int(match[2]))
        return f"{side}_blocks.{number // 3}.attentions.{number % 3}.{match[3]}"
    if layer.startswith("middle_block.1."):
        return layer.replace("middle_block.1.", "mid_block.attentions.0.")
    return ""


def load_lora(lora, to_load):
    """`(patches by parameter, what matched nothing)` of a LoRA's state dict."""
    left, patches = dict(lora), {}
    for name, key in to_load.items():
        up, down = (left.pop(f"{name}.lora_{way}.weight", None) for way in ("up", "down"))
        alpha = left.pop(f"{name}.alpha", None)
        if up is not None and down is not None:
            patches[key] = ("lora", (up, down, None if alpha is None else alpha.item(), None, None))
    return patches, left


class LoraLoader:
    """Keeps a net's original weights while patches are merged into it; one per net."""

    def __init__(self, model):
        self.model = model
        self.backup: dict[str, torch.nn.Parameter] = {}
        self.loaded_hash = str([])

    def refresh(self, lora_patches) -> None:
        """Restore, and merge `lora_patches`, unless the same ones are merged already (told by their keys)."""
        hashes = str(list(lora_patches))
        if hashes == self.loaded_hash:
            return
        for key, weight in self.backup.items():
            self._set(key, weight)
        self.backup = {}
        for (_, strength, _, _), patches in lora_patches.items():
            for key, patch in patches.items():
                weight = self.model.get_parameter(key)
                self.backup.setdefault(key, weight)
                self._set(key, torch.nn.Parameter(merge_lora_to_weight(patch, weight, strength), requires_grad=False))
        self.loaded_hash = hashes

    def _set(self, key: str, weight: torch.nn.Parameter) -> None:
        path, _, name = key.rpartition(".")
        setattr(self.model.get_submodule(path), name, weight)


def merge_lora_to_weight(patch, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """weight + strength * alpha / rank * up @ down, in float32."""
    up, down, alpha = patch[1][:3]
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return (weight.float() + strength * scale * (up.float() @ down.float())).to(weight.dtype)
