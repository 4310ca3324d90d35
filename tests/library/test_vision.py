"""Vision encoders of every file layout are sized from shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.files import find_encoders, scan
from lib_ipadapter.library.spec import VisionEncoderSpec

from .synthetic import adapter_shapes, vision_shapes, write_safetensors, write_torch

H: dict[str, Any] = {"hidden": 1280, "depth": 32, "mlp": 5120, "projected": 1024, "positions": 257}
G: dict[str, Any] = {"hidden": 1664, "depth": 48, "mlp": 8192, "projected": 1280, "positions": 257}
L: dict[str, Any] = {"hidden": 1024, "depth": 24, "mlp": 4096, "projected": 768, "positions": 257}
L336: dict[str, Any] = {**L, "positions": 577}
PUBLISHED = {"clip_h": (H, "gelu", 224), "clip_g": (G, "gelu", 224), "clip_l": (L, "quick_gelu", 224),
             "clip_l_336": (L336, "quick_gelu", 336)}  # fmt: skip


def tower(path: Path) -> VisionEncoderSpec:
    report = inspect_file(path)
    assert (report.status, report.kind) == ("not_adapter", "vision_encoder"), report.message
    assert report.vision_encoder is not None
    assert report.variant == report.vision_encoder.name
    return report.vision_encoder


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_towers(name: str, layout: str, text: bool, projected: bool, tmp_path: Path) -> None:
    sizes, activation, image_size = PUBLISHED[name]
    sizes = {**sizes, "projected": sizes["projected"] if projected else 0}
    path = write_safetensors(tmp_path / "model.safetensors", vision_shapes(**sizes, layout=layout, text=text))
    spec = tower(path)
    assert (spec.name, spec.layout, spec.activation, spec.heads, spec.patch) == (name, layout, activation, 16, 14)
    assert (spec.hidden_dim, spec.depth, spec.mlp_dim) == (sizes["hidden"], sizes["depth"], sizes["mlp"])
    assert (spec.projected_dim, spec.image_size, spec.prefix) == (sizes["projected"], image_size, "")
    # The vocabulary of what adapters need; ViT-L/14 at 224 px is told by the variant alone.
    assert inspect_file(path).encoder == (() if name == "clip_l" else (name,))


def test_every_container_and_prefix(tmp_path: Path) -> None:
    spec = tower(write_torch(tmp_path / "clip_h.pth", vision_shapes(**H), nested=False, flat_storage=False))
    assert spec.name == "clip_h"
    for prefix in ("image_encoder.", "clip.model."):
        found = tower(write_safetensors(tmp_path / "a.safetensors", vision_shapes(**H, prefix=prefix)))
        assert found == replace(spec, prefix=prefix)
        found = tower(
            write_safetensors(tmp_path / "a.safetensors", vision_shapes(**H, prefix=prefix, layout="open_clip"))
        )
        assert (found.prefix, found.layout) == (prefix, "open_clip")


def test_narrow_tower(tmp_path: Path) -> None:
    shapes = vision_shapes(hidden=128, depth=3, mlp=200, projected=32, patch=16, positions=17)
    spec = tower(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert (spec.name, spec.heads, spec.depth, spec.mlp_dim, spec.image_size) == ("custom", 2, 3, 200, 64)
    assert (spec.activation, spec.projected_dim, spec.positions) == ("gelu", 32, 17)


def test_a_siglip_tower_is_named_and_not_offered(tmp_path: Path) -> None:
    shapes = vision_shapes(hidden=1152, depth=27, mlp=4304, projected=0, positions=729)
    del shapes["vision_model.embeddings.class_embedding"]
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert (report.status, report.vision_encoder, report.variant) == ("not_adapter", None, "siglip")
    assert report.kind == "vision_encoder"
    assert "SigLIP" in report.message
    assert find_encoders(scan((tmp_path,)), hidden_dim=1152, feature="hidden") == ()


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@pytest.mark.parametrize("part", ["11.mlp.", "position", "post", "layers.0.|resblocks.0."])
def test_damaged_tower(part: str, layout: str, tmp_path: Path) -> None:
    shapes = vision_shapes(**{**H, "depth": 12}, layout=layout)
    kept = {name: info for name, info in shapes.items() if not any(p in name for p in part.split("|"))}
    assert len(kept) < len(shapes)
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", kept))
    assert (report.status, report.kind) == ("unreadable", "vision_encoder")
    assert "lacks" in report.message


def test_an_adapter_saved_under_an_encoder_s_name_is_an_adapter(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "clip-vision_vit-h.safetensors", adapter_shapes("base", "SDXL"))
    assert inspect_file(path).kind == "base"
