"""Folders of Forge's built-in ControlNet, and how it reads a model file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from modules.paths_internal import models_path
from modules.shared_cmd_options import cmd_opts

controlnet_dir = str(cmd_opts.controlnet_dir or Path(models_path) / "ControlNet")
preprocessor_dir = str(Path(models_path) / "ControlNetPreprocessor")
diffusers_dir = str(Path(models_path) / "diffusers")


def try_load_supported_control_model(ckpt_path):
    """An object whose `model_patcher` runs the net; None where nobody knows the file."""
    from backend.patcher.controlnet import ControlNet

    from lib_ipadapter.core.identity_net import load_identity_net
    from lib_ipadapter.library.controlnets import read_controlnet
    from lib_ipadapter.library.errors import AdapterFileError

    try:
        spec = read_controlnet(Path(ckpt_path))
    except AdapterFileError:
        return None
    if spec.layout == "diffusers":
        raise KeyError("time_embed.0.weight")  # as for a diffusers file whose sizes are not published
    return SimpleNamespace(model_patcher=ControlNet(ControlModel(load_identity_net(spec, Path(ckpt_path)))))


class ControlModel(torch.nn.Module):
    """A net as cldm has it: one list, the middle block's residual last. It knows the heads of the stand-in's UNets."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, hint, timesteps, context, y=None):
        """Residuals."""
        down, mid = self.net(x, timesteps, context, self.net.embed_hint(hint), y)
        return [*down, mid]
