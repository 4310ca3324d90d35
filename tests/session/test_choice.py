"""Which adapter and encoder a unit gets, and which base a UNet is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.library.errors import (
    AdapterFileError,
    AdapterNotFoundError,
    EncoderNotFoundError,
    WrongBaseError,
)
from lib_ipadapter.session.failures import as_named
from lib_ipadapter.session.models import Models
from lib_ipadapter.session.planning import base_of
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder
from tests.unets import sd2_unet, sd15_unet, sdxl_unet

NARROW = (32,) * 16
WIDE = (32,) * 70


def write_adapter(folder: Path, name: str, kind: str = "base", context: int = 768, tokens: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"input_dim": 48} if kind == "base" else {"input_dim": 64, "dim": 64, "heads": 1, "depth": 1}
    layers = WIDE if context == 2048 else NARROW
    tensors = random_adapter_tensors(kind, context, layers, tokens=tokens, **sizes)  # type: ignore[arg-type]
    return save_adapter(folder / f"{name}.safetensors", tensors)


def write_encoder(folder: Path, name: str = "encoder") -> None:
    tensors = random_vision_encoder_tensors(64, 1, mlp=64, patch=14, positions=17, projected=48)
    save_vision_encoder(folder / f"{name}.safetensors", tensors)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    write_encoder(tmp_path)
    return Models(lambda: (tmp_path,))


def test_auto_takes_the_best_for_the_base_and_the_intent(models: Models, tmp_path: Path) -> None:
    write_adapter(tmp_path, "ip-adapter_sd15")
    write_adapter(tmp_path, "ip-adapter-plus_sd15", "plus")
    write_adapter(tmp_path, "ip-adapter-plus-face_sd15", "plus")
    write_adapter(tmp_path, "ip-adapter_sdxl", context=2048)
    assert models.choose("auto", "image", ["SD1"]).name == "ip-adapter-plus_sd15.safetensors"
    assert models.choose("AUTO", "image", ["SDXL"]).name == "ip-adapter_sdxl.safetensors"
    assert models.choose("auto", "image", ["SD1", "SDXL"]).spec.base == "SD1"


def test_a_named_adapter_of_another_base_is_refused_with_those_that_fit(models: Models, tmp_path: Path) -> None:
    write_adapter(tmp_path, "ip-adapter_sd15")
    write_adapter(tmp_path, "ip-adapter_sdxl", context=2048)
    with pytest.raises(WrongBaseError, match=r"SDXL.*SD1.*ip-adapter_sd15"):
        models.choose("ip-adapter_sdxl", "image", ["SD1"])
    assert models.choose("ip-adapter_sdxl", "image", ["SD1", "SDXL"]).spec.base == "SDXL"


def test_nothing_to_choose_from_names_the_folder(models: Models, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        models.choose("auto", "image", ["SD1"])
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_no_adapter_is_refused_by_what_it_is(models: Models) -> None:
    with pytest.raises(AdapterFileError, match="encoder"):
        models.choose("encoder", "image", ["SD1"])


def test_a_missing_encoder_is_an_error_unless_another_adapter_has_one(models: Models, tmp_path: Path) -> None:
    write_adapter(tmp_path, "ip-adapter_sd15")
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(EncoderNotFoundError, match="48-wide pooled"):
        models.choose("auto", "image", ["SD1"])
    tensors = random_vision_encoder_tensors(128, 1, mlp=64, patch=14, positions=17, projected=48)
    save_vision_encoder(tmp_path / "other.safetensors", tensors)
    write_adapter(tmp_path, "ip-adapter-plus_sd15", "plus")
    models.refresh()
    assert models.choose("auto", "image", ["SD1"]).name == "ip-adapter_sd15.safetensors"


def test_a_new_file_is_seen_after_a_refresh(models: Models, tmp_path: Path) -> None:
    write_adapter(tmp_path, "first_sd15")
    assert [name for name, _ in models.adapter_names("SD1")] == ["first_sd15.safetensors"]
    write_adapter(tmp_path / "deeper", "second_sd15")
    models.refresh()
    assert {Path(name).name for name, _ in models.adapter_names("SD1")} == {
        "first_sd15.safetensors", "second_sd15.safetensors",
    }  # fmt: skip
    assert models.adapter_names("SDXL") == []


def test_a_fingerprint_follows_the_bytes(models: Models, tmp_path: Path) -> None:
    path = write_adapter(tmp_path, "ip-adapter_sd15")
    first = models.choose("auto", "image", ["SD1"]).fingerprint
    assert models.choose("auto", "image", ["SD1"]).fingerprint == first
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes(4))
    models.refresh()
    assert models.choose("auto", "image", ["SD1"]).fingerprint != first


@pytest.mark.parametrize(
    ("make", "base"),
    [(sd15_unet, "SD1"), (sd2_unet, "SD2"), (sdxl_unet, "SDXL"), (lambda _: sd15_unet(32, in_channels=9), "SD1")],
)
def test_the_base_follows_from_the_nets_structure(make, base: str) -> None:
    with torch.device("meta"):
        unet = make(32)
    assert base_of(unet, find_cross_attention(unet)) == base


def test_kolors_is_an_sdxl_net_with_a_projected_context() -> None:
    with torch.device("meta"):
        unet = sdxl_unet(32)
    unet.encoder_hid_proj = torch.nn.Identity()
    assert base_of(unet, find_cross_attention(unet)) == "Kolors"


def test_distilled_and_foreign_nets_have_no_base() -> None:
    with torch.device("meta"):
        distilled = sdxl_unet(32, depths={2: 2, 4: 4})
    with pytest.raises(WrongBaseError, match="adapters exist for 16 layers"):
        base_of(distilled, find_cross_attention(distilled))
    with pytest.raises(WrongBaseError, match="Flux"):
        base_of(torch.nn.Identity(), [])


def test_errors_become_sentences() -> None:
    ours = WrongBaseError("as it is")
    assert as_named(ours, "Unit 1") is ours
    memory = as_named(torch.cuda.OutOfMemoryError("CUDA out of memory"), "Unit 2")
    assert (memory.status_code, "ran out of memory" in str(memory)) == (422, True)
    other = as_named(KeyError("to_q"), "Unit 3")
    assert other.status_code == 500
    assert "KeyError" in other.detail
    assert "Traceback" not in other.detail
