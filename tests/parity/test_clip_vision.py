"""The vision tower and its preprocessing against transformers' CLIP."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.encoders.clip_vision import load_vision_encoder, pixel_tensor
from lib_ipadapter.encoders.squares import to_squares
from tests.encoders.random_encoders import (
    FileLayout,
    random_vision_encoder_tensors,
    save_vision_encoder,
    vision_encoder_spec,
)

from .tolerances import PIXELS, VISION_ENCODER

transformers = pytest.importorskip("transformers")

TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 64, "depth": 1, "heads": 4, "positions": 5, "projected": 32},
    "L-like, patch 16": {"hidden": 192, "depth": 5, "heads": 3, "patch": 16, "positions": 50, "projected": 96},
    "H": {"hidden": 1280, "depth": 3, "heads": 16, "mlp": 5120, "projected": 1024},
    "bigG": {"hidden": 1664, "depth": 2, "heads": 16, "mlp": 8192, "projected": 1280},
    "L-336": {"hidden": 1024, "depth": 2, "heads": 16, "mlp": 4096, "positions": 577, "projected": 768},
}
QUICK = ("L-like, patch 16", "L-336")


def reference(tensors: dict[str, torch.Tensor], spec: Any) -> Any:
    """transformers' own network with the same weights."""
    config = transformers.CLIPVisionConfig(
        hidden_size=spec.hidden_dim,
        intermediate_size=spec.mlp_dim,
        projection_dim=spec.projected_dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch,
        hidden_act=spec.activation,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("position_ids") for name in result.missing_keys)
    return model


def close(ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, theirs, atol=VISION_ENCODER, rtol=0)


@pytest.mark.parametrize("tower", TOWERS)
def test_tower(tmp_path: Path, tower: str) -> None:
    activation = "quick_gelu" if tower in QUICK else "gelu"
    tensors = random_vision_encoder_tensors(**TOWERS[tower])
    spec = vision_encoder_spec(**TOWERS[tower], activation=activation)
    model = reference(tensors, spec)
    pixels = torch.randn(2, 3, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True)
    layouts: tuple[FileLayout, ...] = ("transformers", "open_clip_full")
    for layout in layouts:
        path = tmp_path / f"{layout}.safetensors"
        save_vision_encoder(path, random_vision_encoder_tensors(**TOWERS[tower], layout=layout))
        described = vision_encoder_spec(**TOWERS[tower], layout=layout, activation=activation)
        features = load_vision_encoder(described, path, device="cpu", dtype=torch.float32)(pixels)
        path.unlink()
        close(features.pooled, expected.image_embeds)
        close(features.hidden, expected.hidden_states[-2])


@pytest.mark.parametrize("factor", [1.5, 2])
def test_a_larger_side_interpolates_positions(tmp_path: Path, factor: float) -> None:
    forward = transformers.CLIPVisionModelWithProjection.forward
    if "interpolate_pos_encoding" not in inspect.signature(forward).parameters:
        pytest.skip("this transformers cannot feed CLIP a larger picture")
    sizes = {"hidden": 128, "depth": 2, "projected": 64}
    tensors, spec = random_vision_encoder_tensors(**sizes), vision_encoder_spec(**sizes)
    save_vision_encoder(tmp_path / "encoder.safetensors", tensors)
    side = int(spec.image_size * factor)
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(tensors, spec)(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    encoder = load_vision_encoder(spec, tmp_path / "encoder.safetensors", device="cpu", dtype=torch.float32)
    features = encoder(pixels)
    close(features.pooled, expected.image_embeds)
    close(features.hidden, expected.hidden_states[-2])


@pytest.mark.parametrize("side", [224, 336, 448])
@pytest.mark.parametrize(
    "size",
    [(333, 517), (517, 333), (224, 224), (225, 224), (224, 225), (1000, 31), (31, 1000), (640, 10), (5, 5), (2, 2)],
)
def test_centre_is_the_official_preprocessing(size: tuple[int, int], side: int) -> None:
    width, height = size
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    (square,) = to_squares(image, side, "centre")
    plain = processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
    assert np.array_equal(np.asarray(square), plain.transpose(1, 2, 0))
    expected = processor(image, return_tensors="pt").pixel_values
    ours = pixel_tensor([square])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.float(), atol=PIXELS, rtol=0)


def test_several_squares_keep_their_order() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((600, 224))
    squares = to_squares(image, 224, "tiles")
    processor = transformers.CLIPImageProcessor()
    expected = processor(squares, return_tensors="pt").pixel_values
    assert pixel_tensor(squares).shape == (3, 3, 224, 224)
    torch.testing.assert_close(pixel_tensor(squares), expected.float(), atol=PIXELS, rtol=0)
