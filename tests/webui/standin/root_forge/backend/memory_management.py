"""Forge's memory manager: on the CPU there is nothing to move, so calls are counted, and LoRAs merged at a load."""

from __future__ import annotations

import torch

current_loaded_models: list[object] = []
free_memory_calls: list[float] = []
free_memory_bytes = 64 * 1024**3
"""What `get_free_memory` says; a small number makes the sampler split cond and uncond into separate calls."""


def get_torch_device() -> torch.device:
    """The device that the host computes on."""
    return torch.device("cpu")


def get_free_memory(dev=None, torch_free_too: bool = False):
    """Free memory in bytes."""
    del dev
    return (free_memory_bytes, free_memory_bytes) if torch_free_too else free_memory_bytes


def free_memory(memory_required: float, device, keep_loaded=(), free_all: bool = False) -> None:
    """Make room: noted."""
    del device, keep_loaded, free_all
    free_memory_calls.append(memory_required)


def load_models_gpu(models, memory_required: float = 0, hard_memory_preservation: float = 0) -> None:
    """Bring models to the device: noted. One that is there already is left alone, its patches too."""
    del memory_required, hard_memory_preservation
    for patcher in models:
        if not any(loaded is patcher for loaded in current_loaded_models):
            patcher.refresh_loras()
    current_loaded_models[:] = list(models)


def unload_model_clones(model) -> None:
    """Let go of what is over the same net."""
    current_loaded_models[:] = [loaded for loaded in current_loaded_models if not model.is_clone(loaded)]


def load_model_gpu(model) -> None:
    """Bring one model to the device."""
    load_models_gpu([model])


def unload_all_models() -> None:
    """Forget what was loaded."""
    current_loaded_models.clear()


def soft_empty_cache(force: bool = False) -> None:
    """Nothing is cached on the CPU."""
    del force


def module_size(module: torch.nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def text_encoder_device() -> torch.device:
    """Where encoders run."""
    return get_torch_device()


def text_encoder_offload_device() -> torch.device:
    """Where encoders rest."""
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    """Where the UNet rests."""
    return torch.device("cpu")


def should_use_fp16(device=None, model_params: int = 0, prioritize_performance: bool = True,
                    manual_cast: bool = False) -> bool:
    """The CPU computes in float32."""
    return False


def should_use_bf16(device=None, model_params: int = 0, prioritize_performance: bool = True,
                    manual_cast: bool = False) -> bool:
    """The CPU computes in float32."""
    return False


def is_device_cpu(device) -> bool:
    """Whether it is the CPU."""
    return torch.device(device).type == "cpu"
