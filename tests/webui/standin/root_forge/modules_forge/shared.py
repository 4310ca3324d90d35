"""Folders of Forge's built-in ControlNet."""

from __future__ import annotations

from pathlib import Path

from modules.paths_internal import models_path
from modules.shared_cmd_options import cmd_opts

controlnet_dir = str(cmd_opts.controlnet_dir or Path(models_path) / "ControlNet")
preprocessor_dir = str(Path(models_path) / "ControlNetPreprocessor")
diffusers_dir = str(Path(models_path) / "diffusers")
