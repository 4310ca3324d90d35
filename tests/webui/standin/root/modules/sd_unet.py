"""Alternative UNets (TensorRT and the like): while one is active, the checkpoint's own modules are not called."""

from __future__ import annotations

import torch

current_unet_option = None
current_unet = None


class SdUnet(torch.nn.Module):
    """Base of alternative UNets."""

    option = None

    def forward(self, x, timesteps, context, *args, **kwargs):
        """Predict the noise."""
        raise NotImplementedError

    def activate(self) -> None:
        """Called when this one becomes the current one."""

    def deactivate(self) -> None:
        """Called when it stops being that."""


class SdUnetOption:
    """One entry of the setting."""

    model_name = None
    label = None

    def create_unet(self):
        """The UNet of this entry."""
        raise NotImplementedError


def apply_unet(option=None) -> None:
    """Called at the start of each job; tests set `current_unet` themselves."""
    del option
