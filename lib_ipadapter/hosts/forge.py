"""Forge, reForge and Forge Classic: one family, told apart by where their memory manager lives."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.schedule import COND, UNCOND, UNetCall
from ..library.spec import ControlNetSpec
from .a1111 import has_workers, interrupted, later_checkpoints, selected_checkpoint
from .base import (
    CallReader,
    LaterCheckpoint,
    StepClock,
    call_argument,
    face_search_folders,
    require_step,
    search_folders,
    torch_too_old,
)
from .extension_nets import ExtensionNets
from .forge_controlnet import ForgeControlNet
from .forge_loras import build_patches
from .guidance import Guidance, Rescale, SamplingGuidance
from .identity_nets import HostNet, build_managed
from .loras import HostLora, lora_folders, typed_loras
from .rows import contradicts, rows_by_context, text_rows


class ForgeHost:
    """Everything is looked up when asked: models, options and devices change between jobs."""

    @property
    def name(self) -> str:
        """Forge, or one of the two that kept its earlier parts; Classic's own version says which it is."""
        return "Forge" if importlib.util.find_spec("backend") else "reForge or Forge Classic"

    def version(self) -> str:
        from modules import launch_utils

        return launch_utils.git_tag()

    def too_old(self) -> str:
        from modules import scripts

        if hasattr(scripts.Script, "process_before_every_sampling"):
            return torch_too_old()
        return (
            f"This Forge ({self.version()}) is too old for image prompts: it lacks process_before_every_sampling. "
            "Update it."
        )

    def refusal(self, p: Any) -> str:
        return ""

    def unet(self, p: Any) -> nn.Module:
        return p.sd_model.forge_objects.unet.model.diffusion_model

    def loaded_unet(self) -> nn.Module | None:
        from modules import sd_models

        model = sd_models.model_data.sd_model
        objects = getattr(model, "forge_objects", None)
        return objects.unet.model.diffusion_model if objects is not None else None

    def selected_checkpoint(self) -> Path | None:
        return selected_checkpoint()

    def has_workers(self) -> bool:
        return has_workers()

    def later_checkpoints(self, p: Any) -> Sequence[LaterCheckpoint]:
        return later_checkpoints(p)

    def call_reader(self, p: Any) -> CallReader:
        return OptionsReader()

    def hides_errors(self) -> bool:
        """reForge and Classic run the page's jobs on the main thread, whose loop prints an exception and drops it.

        Source: modules_forge/main_thread.py, loop; Forge's keeps `last_exception` and raises it for the page.
        """
        worker = sys.modules.get("modules_forge.main_thread")
        on_main_thread = threading.current_thread() is threading.main_thread()
        return worker is not None and not hasattr(worker, "last_exception") and on_main_thread

    def interrupted(self) -> bool:
        return interrupted()

    def device(self) -> torch.device:
        return torch.device(_memory().get_torch_device())

    def dtype(self) -> torch.dtype:
        memory, device = _memory(), self.device()
        if device.type == "cpu":
            return torch.float32
        if memory.should_use_fp16(device):
            return torch.float16
        return torch.bfloat16 if memory.should_use_bf16(device) else torch.float32

    def make_room(self, size: int) -> None:
        _memory().free_memory(int(size * 1.2), self.device())

    def release(self) -> None:
        _memory().soft_empty_cache()

    def folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        from modules import paths, shared
        from modules_forge import shared as forge_shared

        return search_folders(
            Path(paths.models_path),
            *extra,
            forge_shared.controlnet_dir,
            shared.opts.data.get("control_net_models_path"),
            forge_shared.preprocessor_dir,
        )

    def typed_loras(self) -> Sequence[Path]:
        return typed_loras()

    def lora_folders(self) -> Sequence[Path]:
        return lora_folders()

    def build_lora(self, p: Any, name: str, weights: Mapping[str, torch.Tensor]) -> HostLora:
        def load(patcher: Any) -> None:
            sides = (max(p.height, getattr(p, "hr_upscale_to_y", 0)), max(p.width, getattr(p, "hr_upscale_to_x", 0)))
            room = patcher.memory_required([2 * p.batch_size, 4, *(side // 8 for side in sides)])
            _memory().load_models_gpu([patcher], room)

        return build_patches(p.sd_model, name, weights, load)

    def build_net(self, p: Any, spec: ControlNetSpec, path: Path) -> HostNet:
        """In the precision in which the UNet computes, on Forge."""
        model = p.sd_model.forge_objects.unet.model
        dtype = getattr(model, "computation_dtype", None) or self.dtype()
        return build_managed(p.sd_model, spec, path, dtype, _memory())

    def guide(self, p: Any, rescale: Rescale) -> Guidance:
        return SamplingGuidance(p.sd_model, rescale)

    def extension_nets(self, p: Any) -> ExtensionNets:
        return ForgeControlNet(_memory(), OptionsReader())

    def face_folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        from modules import paths
        from modules_forge import shared as forge_shared

        return face_search_folders(Path(paths.models_path), *extra, forge_shared.preprocessor_dir)


_Place = tuple[int, tuple[int, ...], int]
"""A call's number in its step, the kinds of its chunks, and its rows."""


class OptionsReader:
    """Reads the rows from `transformer_options["cond_or_uncond"]`, which the Forge family passes with every call.

    Source: backend/sampling/sampling_function.py calc_cond_uncond_batch; 0 is prompt, 1 negative, one entry per
    chunk, and a chunk has a row per picture. Extensions that cut the latent into tiles repeat the whole call's rows and
    leave the options as they are (lib_multidiffusion/tiled_diffusion.py): such a call is told by its text.

    Comparing texts makes the device wait, so a call that held is trusted in the next steps, at its place among the
    step's calls and while the steps go on making the same ones.
    """

    def __init__(self) -> None:
        self._clock = StepClock()
        self.forget()

    def forget(self) -> None:
        self._clock.forget()
        self._params: Any = None
        self._calls: list[_Place] = []
        self._calls_before: list[_Place] = []
        self._held: set[_Place] = set()

    def begin_step(self, params: Any) -> None:
        self._clock.begin_step(params)
        self._params = params
        if self._calls_before and self._calls != self._calls_before:
            self._held.clear()
        self._calls_before, self._calls = self._calls, []

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall:
        require_step(self._params is not None)
        batch = call_argument(args, kwargs, 0, "x").shape[0]
        chunks = tuple((kwargs.get("transformer_options") or {}).get("cond_or_uncond") or ())
        place = (len(self._calls), chunks, batch)
        self._calls.append(place)
        rows = tuple(kind for kind in chunks for _ in range(self._params.x.shape[0]))
        if place not in self._held:
            rows = self._checked(rows, batch, call_argument(args, kwargs, 2, "context"), place)
        return UNetCall(rows=rows, fraction=self._clock.fraction(call_argument(args, kwargs, 1, "timesteps")))

    def _checked(self, rows: tuple[int, ...], batch: int, context: Any, place: _Place) -> tuple[int, ...]:
        """The rows that the options say, or what the texts say where the options cannot be right."""
        cond, uncond = text_rows(self._params.text_cond), text_rows(self._params.text_uncond)
        kinds = set(rows)
        # Guidance extensions (SAG) pass the negative text as the prompt of a call of its own.
        alone = len(kinds) == 1 and uncond is not None
        known = len(rows) == batch and kinds <= {COND, UNCOND}
        if not known or (alone and contradicts(context, cond, uncond, rows)):
            return rows_by_context(context, cond, uncond, batch)
        self._held.add(place)
        return rows


def _memory() -> Any:
    """The memory manager: Forge's own, or that of reForge and Classic."""
    try:
        return importlib.import_module("backend.memory_management")
    except ModuleNotFoundError:
        return importlib.import_module("ldm_patched.modules.model_management")
