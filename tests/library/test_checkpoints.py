"""A full checkpoint's base from its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_ipadapter.library.checkpoints import CheckpointInfo, checkpoint_base
from lib_ipadapter.library.detection import inspect_file

from .synthetic import Shapes, pickled_dict, pickled_tensor, write_safetensors, write_torch, write_zip


def unet(context: int, layers: int, *, channels: int = 4, prefix: str = "model.diffusion_model.") -> Shapes:
    width = 32
    found: Shapes = {
        f"{prefix}input_blocks.0.0.weight": ("F16", (width, channels, 3, 3)),
        f"{prefix}out.2.weight": ("F16", (4, width, 3, 3)),
        "first_stage_model.decoder.conv_in.weight": ("F16", (32, 4, 3, 3)),
    }
    for number in range(layers):
        block = ("input_blocks.1.1", "middle_block.1", "output_blocks.5.1")[number % 3]
        path = f"{prefix}{block}.transformer_blocks.{number}"
        found[f"{path}.attn1.to_k.weight"] = ("F16", (width, width))
        found[f"{path}.attn2.to_k.weight"] = ("F16", (width, context))
    return found


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize("write", [write_safetensors, write_torch])
@pytest.mark.parametrize(
    ("context", "layers", "channels", "base"),
    [
        (768, 16, 4, "SD1"),
        (768, 16, 9, "SD1"),
        (768, 16, 8, "SD1"),
        (1024, 16, 4, "SD2"),
        (2048, 70, 4, "SDXL"),
        (1280, 44, 4, ""),  # the SDXL refiner
        (2048, 30, 4, ""),  # a pruned SDXL
        (0, 0, 4, ""),
    ],
)
def test_base(context: int, layers: int, channels: int, base: str, write: object, prefix: str, tmp_path: Path) -> None:
    assert callable(write)
    path = write(tmp_path / "model.ckpt", unet(context, layers, channels=channels, prefix=prefix))
    assert checkpoint_base(path) == CheckpointInfo(base, context, layers, channels)  # type: ignore[arg-type]
    report = inspect_file(path)
    assert (report.status, report.kind, report.base) == ("not_adapter", "", base)


def test_an_old_checkpoint_with_training_objects_is_read_past_them(tmp_path: Path) -> None:
    shapes = unet(768, 16)
    leaves = {name: pickled_tensor("0", "F32", 10**8, 0, shape) for name, (_, shape) in shapes.items()}
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nq\x01"
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01tR(K\x03tb"
    number = b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"X\x01\x00\x00\x00atR"
    body = pickled_dict({"state_dict": leaves, "callbacks": b"}(" + callback + number + b"u", "epoch": b"K\x07"})
    path = write_zip(tmp_path / "sd-v1-5.ckpt", b"\x80\x02" + body + b".", {"0": 4 * 10**8})
    assert checkpoint_base(path) == CheckpointInfo("SD1", 768, 16, 4)
    report = inspect_file(path)  # what could be loaded as an adapter is read strictly
    assert report.status == "unreadable"
    assert "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" in report.message


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    controlnet = {
        "control_model.input_blocks.0.0.weight": ("F16", (32, 4, 3, 3)),
        "control_model.zero_convs.0.0.weight": ("F16", (32, 32, 1, 1)),
    }
    assert checkpoint_base(write_safetensors(tmp_path / "a.safetensors", controlnet)) is None
    assert checkpoint_base(tmp_path / "nothing.safetensors") is None
    (tmp_path / "b.ckpt").write_bytes(b"\x80\x02}.")
    assert checkpoint_base(tmp_path / "b.ckpt") is None
