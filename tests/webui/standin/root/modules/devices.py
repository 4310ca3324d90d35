"""Devices and dtypes: the stand-in runs on the CPU in float32 unless told otherwise."""

from __future__ import annotations

import contextlib
import gc

import torch

cpu = torch.device("cpu")
device = cpu
device_interrogate = cpu
dtype = torch.float32
dtype_vae = torch.float32
dtype_unet = torch.float32
dtype_inference = torch.float32
unet_needs_upcast = False
fp8 = False


def get_optimal_device_name() -> str:
    """Name of the device that the host computes on."""
    return str(device)


def get_optimal_device() -> torch.device:
    """The device that the host computes on."""
    return device


def get_device_for(task: str) -> torch.device:
    """The device for one of the host's tasks."""
    del task
    return device


def torch_gc() -> None:
    """Free what nobody holds."""
    gc.collect(0)


def autocast(disable: bool = False):
    """Nothing to cast in float32."""
    del disable
    return contextlib.nullcontext()


def without_autocast(disable: bool = False):
    """Nothing to cast in float32."""
    del disable
    return contextlib.nullcontext()


class NansException(Exception):  # noqa: N818 (the host's own name)
    """Sampling gave nothing but NaN."""


def test_for_nans(x: torch.Tensor, where: str) -> None:
    """Raises: NansException when every value is NaN."""
    if torch.all(torch.isnan(x)).item():
        raise NansException(f"A tensor with NaNs was produced in {where}.")
