"""AUTOMATIC1111's WebUI, 1.10 and later: where its UNet, its options and its folders are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.identity_net import load_identity_net
from ..library.spec import ControlNetSpec
from .a1111_controlnet import A1111ControlNet
from .a1111_loras import build_network
from .base import CallReader, LaterCheckpoint, face_search_folders, search_folders, torch_too_old
from .extension_nets import ExtensionNets
from .guidance import CombiningGuidance, Guidance, Rescale
from .identity_nets import HostNet, MovingNet
from .loras import HostLora, lora_folders, typed_loras
from .rows import SequenceReader


class A1111Host:
    """Everything is looked up when asked: models, options and devices change between jobs."""

    name = "AUTOMATIC1111"

    def version(self) -> str:
        from modules import launch_utils

        return launch_utils.git_tag()

    def too_old(self) -> str:
        from modules import scripts

        if hasattr(scripts.Script, "process_before_every_sampling"):
            return torch_too_old()
        return (
            f"This WebUI ({self.version()}) is too old for image prompts: it lacks process_before_every_sampling. "
            "Update it to 1.10 or later."
        )

    def refusal(self, p: Any) -> str:
        from modules import sd_unet

        if getattr(sd_unet, "current_unet", None) is not None:
            return (
                "A replacement UNet (TensorRT) is active and has no attention layers to prompt with a picture. "
                "Set Settings > Stable Diffusion > SD Unet to None, or switch the image prompt off."
            )
        return ""

    def unet(self, p: Any) -> nn.Module:
        return p.sd_model.model.diffusion_model

    def loaded_unet(self) -> nn.Module | None:
        from modules import sd_models

        model = sd_models.model_data.sd_model
        return model.model.diffusion_model if model is not None else None

    def selected_checkpoint(self) -> Path | None:
        return selected_checkpoint()

    def has_workers(self) -> bool:
        return has_workers()

    def later_checkpoints(self, p: Any) -> Sequence[LaterCheckpoint]:
        return later_checkpoints(p)

    def call_reader(self, p: Any) -> CallReader:
        return SequenceReader(_skips_negative, _edits)

    def hides_errors(self) -> bool:
        return False

    def interrupted(self) -> bool:
        return interrupted()

    def device(self) -> torch.device:
        from modules import devices

        return torch.device(devices.device)

    def dtype(self) -> torch.dtype:
        from modules import devices

        return torch.float32 if self.device().type == "cpu" else devices.dtype

    def make_room(self, size: int) -> None:
        """With medvram or lowvram, the part of the model that ran last (text encoder, VAE) leaves the device first."""
        from modules import shared

        if getattr(shared.sd_model, "lowvram", False):
            from modules import lowvram

            lowvram.send_everything_to_cpu()
        self.release()

    def release(self) -> None:
        from modules import devices

        devices.torch_gc()

    def folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        from modules import paths, shared

        controlnet = [Path(folder) for folder in _controlnet_extension_folders()]
        flags = shared.cmd_opts
        annotators = [getattr(flags, "controlnet_annotator_models_path", None)]
        annotators += [folder / "annotator" / "downloads" for folder in controlnet]
        return search_folders(
            Path(paths.models_path),
            *extra,
            getattr(flags, "controlnet_dir", None),
            shared.opts.data.get("control_net_models_path"),
            *(folder / "models" for folder in controlnet),
            *(Path(folder) / "clip_vision" for folder in annotators if folder),
        )

    def typed_loras(self) -> Sequence[Path]:
        return typed_loras()

    def lora_folders(self) -> Sequence[Path]:
        return lora_folders()

    def build_lora(self, p: Any, name: str, weights: Mapping[str, torch.Tensor]) -> HostLora:
        return build_network(p.sd_model, name, weights)

    def build_net(self, p: Any, spec: ControlNetSpec, path: Path) -> HostNet:
        """With lowvram the UNet's parts are on the device only while they run, and so is this net."""
        from modules import shared

        net = load_identity_net(spec, path, dtype=self.dtype())
        return MovingNet(net, leaves=bool(getattr(shared.cmd_opts, "lowvram", False)))

    def guide(self, p: Any, rescale: Rescale) -> Guidance:
        return CombiningGuidance(rescale)

    def extension_nets(self, p: Any) -> ExtensionNets:
        return A1111ControlNet(coming_checkpoint)

    def face_folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        """The ControlNet extension keeps its packs in `insightface` beside its preprocessors' other files.

        Source: sd-webui-controlnet annotator/annotator_path.py (setting, then flag, then its own folder).
        """
        from modules import paths, shared

        annotators = [
            shared.opts.data.get("control_net_modules_path"),
            getattr(shared.cmd_opts, "controlnet_annotator_models_path", None),
        ]
        annotators += [Path(folder) / "annotator" / "downloads" for folder in _controlnet_extension_folders()]
        return face_search_folders(
            Path(paths.models_path),
            *extra,
            *(Path(paths.data_path, folder) / "insightface" for folder in annotators if folder),
        )


def later_checkpoints(p: Any) -> list[LaterCheckpoint]:
    """The hires and the refiner checkpoint of a job, where they are set; the same fields on every host."""
    hires = getattr(p, "hr_checkpoint_info", None) if getattr(p, "enable_hr", False) else None
    refiner = getattr(p, "refiner_checkpoint_info", None)
    named = (("hires", hires), ("refiner", refiner))
    return [LaterCheckpoint(role, info.name, Path(info.filename)) for role, info in named if info is not None]


def selected_checkpoint() -> Path | None:
    """The file behind the setting "Stable Diffusion checkpoint"; the same setting on every host."""
    from modules import sd_models, shared

    title = shared.opts.data.get("sd_model_checkpoint")
    info = sd_models.get_closet_checkpoint_match(title) if title else None
    return Path(info.filename) if info is not None else None


def coming_checkpoint(p: Any) -> Path | None:
    """The file that the job `p` is going to load, asked while it begins.

    Source: modules/processing.py, process_images: an override that names no checkpoint is dropped.
    """
    from modules import sd_models

    info = sd_models.checkpoint_aliases.get((p.override_settings or {}).get("sd_model_checkpoint"))
    return Path(info.filename) if info is not None else selected_checkpoint()


def has_workers() -> bool:
    """Whether stable-diffusion-webui-distributed (under whatever folder name it has) is enabled."""
    from modules import extensions

    return any(extension.enabled and "distributed" in extension.name.lower() for extension in extensions.extensions)


def interrupted() -> bool:
    """Whether the user stopped or skipped the running job; the same flags on every host."""
    from modules import shared

    return shared.state.interrupted or shared.state.skipped


def _controlnet_extension_folders() -> list[str]:
    from modules import extensions

    return [ext.path for ext in extensions.extensions if ext.enabled and "controlnet" in ext.name.lower()]


def _skips_negative(params: Any) -> bool:
    """Whether CFGDenoiser.forward leaves the negative rows out of this step (skip early CFG, NGMS)."""
    from modules import shared

    denoiser, opts = params.denoiser, shared.opts
    early = getattr(opts, "skip_early_cond", 0.0)
    if early != 0.0 and denoiser.step / denoiser.total_steps <= early:
        return True
    threshold = getattr(denoiser.p, "s_min_uncond", 0.0) or 0.0
    every_step = getattr(opts, "s_min_uncond_all", False)
    if threshold <= 0 or _edits(params) or not (denoiser.step % 2 or every_step):
        return False
    return bool(params.sigma[0] < threshold)


def _edits(params: Any) -> bool:
    """Whether this is an InstructPix2Pix step, which runs the negative rows twice."""
    from modules import shared

    scale = getattr(params.denoiser, "image_cfg_scale", None)
    return getattr(shared.sd_model, "cond_stage_key", None) == "edit" and scale is not None and scale != 1.0
