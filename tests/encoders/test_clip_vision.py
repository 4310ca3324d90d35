"""The tower's loading: layouts, containers, dtypes, memory; and what `want` leaves out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_ipadapter.encoders.clip_vision import VisionEncoder, load_vision_encoder
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError

from .random_encoders import FileLayout, random_vision_encoder_tensors, save_vision_encoder, vision_encoder_spec

SMALL = {"hidden": 128, "depth": 3, "positions": 17, "projected": 48}
LAYOUTS: tuple[FileLayout, ...] = ("transformers", "transformers_full", "open_clip", "open_clip_full")


def load(path: Path, layout: FileLayout = "transformers", dtype: torch.dtype = torch.float32) -> VisionEncoder:
    return load_vision_encoder(vision_encoder_spec(**SMALL, layout=layout), path, device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_vision_encoder(path, random_vision_encoder_tensors(**SMALL))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_tower(
    tmp_path: Path, file: Path, pixels: torch.Tensor, layout: FileLayout, suffix: str
) -> None:
    path = tmp_path / f"other{suffix}"
    save_vision_encoder(path, random_vision_encoder_tensors(**SMALL, layout=layout))
    expected, features = load(file)(pixels), load(path, layout)(pixels)
    assert torch.equal(features.pooled, expected.pooled)
    assert torch.equal(features.hidden, expected.hidden)
    assert features.face is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_halves_are_float32_on_the_cpu(
    tmp_path: Path, pixels: torch.Tensor, layout: FileLayout, stored: torch.dtype
) -> None:
    tensors = random_vision_encoder_tensors(**SMALL, layout=layout)
    halved, rounded = tmp_path / "halved.safetensors", tmp_path / "rounded.safetensors"
    save_vision_encoder(halved, tensors, stored)
    save_vision_encoder(rounded, {name: t.to(stored).float() for name, t in tensors.items()})
    encoder = load(halved, layout, torch.float16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    features, expected = encoder(pixels), load(rounded, layout)(pixels)
    assert torch.equal(features.hidden, expected.hidden)
    assert torch.equal(features.pooled, expected.pooled)


def test_only_what_is_wanted_is_computed(file: Path, pixels: torch.Tensor) -> None:
    encoder = load(file)
    ran: list[int] = []
    for index, layer in enumerate(encoder.vision_model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    both, hidden = encoder(pixels), encoder(pixels, want="hidden")
    assert ran == [0, 1, 2, 0, 1]
    assert hidden.pooled is None
    assert torch.equal(hidden.hidden, both.hidden)
    assert both.hidden.shape == (2, 17, 128)
    pooled = encoder(pixels, want="pooled")
    assert pooled.hidden is None
    assert torch.equal(pooled.pooled, both.pooled)
    assert both.pooled.shape == (2, 48)


def test_a_file_without_projection_still_has_hidden_states(tmp_path: Path, pixels: torch.Tensor) -> None:
    path = tmp_path / "bare.safetensors"
    sizes = SMALL | {"projected": 0}
    save_vision_encoder(path, random_vision_encoder_tensors(**sizes))
    encoder = load_vision_encoder(vision_encoder_spec(**sizes), path, device="cpu", dtype=torch.float32)
    assert encoder(pixels, want="hidden").hidden.shape == (2, 17, 128)
    with pytest.raises(AdapterFileError, match="no projection"):
        encoder(pixels, want="pooled")


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_vision_encoder_tensors(**SMALL)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name][:100]
    path = tmp_path / "damaged.safetensors"
    save_vision_encoder(path, tensors)
    with pytest.raises(AdapterFileError, match=rf"damaged.*{name} is \(100, 128\).*\(512, 128\)"):
        load(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_tensor_is_named(tmp_path: Path, layout: FileLayout) -> None:
    tensors = random_vision_encoder_tensors(**SMALL, layout=layout)
    name = "visual.ln_post.bias" if layout.startswith("open_clip") else "vision_model.post_layernorm.bias"
    del tensors[name]
    path = tmp_path / "short.safetensors"
    save_vision_encoder(path, tensors)
    with pytest.raises(AdapterFileError, match=name):
        load(path, layout)


@pytest.mark.parametrize(("name", "prefix"), [("described.safetensors", ""), ("described.bin", "clip.")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_described_file_loads(
    tmp_path: Path, file: Path, pixels: torch.Tensor, *, layout: FileLayout, name: str, prefix: str
) -> None:
    path = tmp_path / name
    tensors = random_vision_encoder_tensors(**SMALL, layout=layout)
    save_vision_encoder(path, {prefix + key: tensor for key, tensor in tensors.items()})
    spec = inspect_file(path).vision_encoder
    expected = replace(vision_encoder_spec(**SMALL, layout=layout), prefix=prefix)
    assert spec is not None
    assert replace(spec, name=expected.name) == expected
    encoder = load_vision_encoder(spec, path, device="cpu", dtype=torch.float32)
    assert torch.equal(encoder(pixels).pooled, load(file)(pixels).pooled)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_file_is_free_after_loading(tmp_path: Path, pixels: torch.Tensor, suffix: str) -> None:
    path = tmp_path / f"mapped{suffix}"
    save_vision_encoder(path, random_vision_encoder_tensors(**SMALL))
    encoder = load(path)
    before = encoder(pixels).hidden
    if sys.platform == "linux":
        assert path.name not in Path("/proc/self/maps").read_text(encoding="utf-8")
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    assert torch.equal(encoder(pixels).hidden, before)


@pytest.mark.parametrize("layout", ["transformers", "open_clip_full"])
def test_no_parameter_keeps_more_than_the_tower(tmp_path: Path, layout: FileLayout) -> None:
    """A view of a larger storage would keep that storage alive."""
    path = tmp_path / "encoder.bin"
    save_vision_encoder(path, random_vision_encoder_tensors(**SMALL, layout=layout))
    parameters = list(load(path, layout).parameters())
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}
    assert sum(storages.values()) == sum(p.numel() * p.element_size() for p in parameters)
    assert not any(p.requires_grad for p in parameters)


def test_an_autocast_around_the_call_changes_nothing(file: Path, pixels: torch.Tensor) -> None:
    encoder = load(file)
    expected = encoder(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(pixels)
    assert features.pooled.dtype == torch.float32
    assert torch.equal(features.pooled, expected.pooled)
    assert torch.equal(features.hidden, expected.hidden)


def test_a_replaced_linear_is_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HostLinear(torch.nn.Linear):
        pass

    monkeypatch.setattr(torch.nn, "Linear", HostLinear)
    linears = [module for module in load(file).modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 3 * 6 + 1


def test_a_batch_is_its_pictures(file: Path, pixels: torch.Tensor) -> None:
    encoder = load(file)
    together, alone = encoder(pixels), encoder(pixels[1:])
    torch.testing.assert_close(together.pooled[1:], alone.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.hidden[1:], alone.hidden, atol=1e-5, rtol=0)


def test_inference_mode_around_load_and_call_changes_nothing(file: Path, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        features = load(file)(pixels)
    assert torch.equal(features.hidden, load(file)(pixels).hidden)
