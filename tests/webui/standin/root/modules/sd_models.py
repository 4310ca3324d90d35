"""Checkpoints: the list, finding one by name, loading and switching."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modules import devices, errors, script_callbacks, shared
from modules.latent_model import LatentModel
from modules.paths_internal import models_path
from safetensors import safe_open
from safetensors.torch import load_file

from tests.webui.standin import launching
from tests.webui.standin.nets import PREFIX, read_shape

model_dir = "Stable-diffusion"
model_path = str(Path(models_path) / model_dir)
checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}


class CheckpointInfo:
    """One checkpoint file and the names it answers to."""

    def __init__(self, filename: str, folder: Path):
        path = Path(filename)
        self.filename = filename
        self.name = path.relative_to(folder).as_posix()
        self.name_for_extra = path.stem
        self.model_name = path.stem
        self.is_safetensors = path.suffix == ".safetensors"
        self.metadata: dict[str, str] = {}
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.shorthash = self.sha256[:10]
        self.hash = self.shorthash[:8]
        self.title = f"{self.name} [{self.shorthash}]"
        self.short_title = f"{self.name_for_extra} [{self.shorthash}]"
        self.ids = [self.hash, self.shorthash, self.sha256, self.model_name, self.name, self.title, self.short_title]

    def register(self) -> None:
        """Enter the file into the lists."""
        checkpoints_list[self.title] = self
        for name in self.ids:
            checkpoint_aliases[name] = self

    def calculate_shorthash(self) -> str:
        """First ten digits of the file's SHA-256."""
        return self.shorthash


def list_models() -> None:
    """Read the checkpoint folders again."""
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    folders = [Path(model_path)] + ([Path(shared.cmd_opts.ckpt_dir)] if shared.cmd_opts.ckpt_dir else [])
    for folder in folders:
        for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []:
            CheckpointInfo(str(path), folder).register()


def checkpoint_tiles(use_short: bool = False) -> list[str]:
    """Titles for a drop-down."""
    return [info.short_title if use_short else info.title for info in checkpoints_list.values()]


def get_closet_checkpoint_match(search_string: str | None) -> CheckpointInfo | None:
    """The checkpoint of that name, hash or title; else the one whose title holds the text (the host's spelling)."""
    if not search_string:
        return None
    if search_string in checkpoint_aliases:
        return checkpoint_aliases[search_string]
    found = sorted((i for i in checkpoints_list.values() if search_string in i.title), key=lambda i: len(i.title))
    return found[0] if found else None


def select_checkpoint() -> CheckpointInfo:
    """The checkpoint of the setting, else the first one. Raises: FileNotFoundError when there is none."""
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is not None:
        return info
    if not checkpoints_list:
        raise FileNotFoundError(f"No checkpoints found in {model_path}.")
    return next(iter(checkpoints_list.values()))


class SdModelData:
    """The loaded model; loaded when first asked for."""

    def __init__(self) -> None:
        self.sd_model = None
        self.loaded_sd_models: list[object] = []
        self.forge_loading_parameters: dict[str, object] = {}

    def get_sd_model(self):
        """The loaded model, loading the selected checkpoint when there is none yet."""
        if self.sd_model is None:
            load_model()
        return self.sd_model

    def set_sd_model(self, model) -> None:
        """Replace the loaded model."""
        self.sd_model = model


model_data = SdModelData()


class SkipWritingToConfig:
    """Marks a switch (hires, refiner) that leaves the setting as it is."""

    skip = False

    def __enter__(self):
        self.previous = SkipWritingToConfig.skip
        SkipWritingToConfig.skip = True

    def __exit__(self, *_exc):
        SkipWritingToConfig.skip = self.previous


def read_state_dict(checkpoint_file, *_ignored, **_also_ignored):
    """Tensors of a checkpoint file."""
    return load_file(checkpoint_file)


def _shape_of(info: CheckpointInfo):
    with safe_open(info.filename, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return read_shape(shapes)


def _load_weights(model, info: CheckpointInfo) -> None:
    unet = model.forge_objects.unet.model.diffusion_model if launching.is_forge() else model.model.diffusion_model
    state = {k[len(PREFIX):]: v for k, v in load_file(info.filename).items() if k.startswith(PREFIX)}
    unet.load_state_dict(state)
    unet.to(device=devices.device, dtype=devices.dtype_unet)
    model.sd_checkpoint_info, model.sd_model_hash, model.filename = info, info.shorthash, info.filename
    if not SkipWritingToConfig.skip:
        shared.opts.data["sd_model_checkpoint"] = info.title


def _new_model(shape):
    if launching.is_forge():
        from modules_forge.engine import ForgeModel

        return ForgeModel(shape)
    return LatentModel(shape)


def load_model(checkpoint_info: CheckpointInfo | None = None, already_loaded_state_dict=None):
    """Build a model object for a checkpoint and make it the current one; fires `on_model_loaded`."""
    del already_loaded_state_dict
    info = checkpoint_info or select_checkpoint()
    model = _new_model(_shape_of(info))
    _load_weights(model, info)
    model_data.set_sd_model(model)
    script_callbacks.model_loaded_callback(model)
    return model


def reload_model_weights(sd_model=None, info: CheckpointInfo | None = None, forced_reload: bool = False):
    """Switch to `info` (the setting's checkpoint when None).

    A1111 swaps the weights in place when both checkpoints have the same configuration and makes another model object
    otherwise; Forge always makes another one.
    """
    info = info or select_checkpoint()
    model = sd_model or model_data.sd_model
    if model is not None and model.sd_checkpoint_info is not None and not forced_reload \
            and model.sd_checkpoint_info.filename == info.filename:
        return model
    if model is None or launching.is_forge() or model.shape != _shape_of(info):
        model_data.sd_model = None
        return load_model(info)
    _load_weights(model, info)
    script_callbacks.model_loaded_callback(model)
    return model


def forge_model_reload():
    """Forge's name for loading what the setting asks for; returns the model and whether it was loaded now."""
    before = model_data.sd_model
    model = reload_model_weights()
    return model, model is not before


def unload_model_weights(sd_model=None, info=None):
    """Forget the loaded model."""
    del sd_model, info
    model_data.sd_model = None


def apply_token_merging(sd_model, token_merging_ratio) -> None:
    """Not imitated; a ratio other than 0 is reported."""
    if token_merging_ratio:
        errors.report("the stand-in has no token merging")
