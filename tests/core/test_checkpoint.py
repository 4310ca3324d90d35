"""Reading tensors: every container, own storages, no mapping left, named errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_ipadapter.core.checkpoint import read_tensors
from lib_ipadapter.library.errors import AdapterFileError

from .random_adapters import Layout, random_adapter_tensors, save_adapter

LAYOUTS: tuple[Layout, ...] = ("flat", "nested-bin")


@pytest.fixture(params=LAYOUTS)
def adapter_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tensors = random_adapter_tensors("base", 64, (32, 64), input_dim=48)
    return save_adapter(tmp_path / f"adapter-{request.param}.bin", tensors, request.param)


def test_reads_the_wanted_tensors_alone(adapter_file: Path) -> None:
    expected = random_adapter_tensors("base", 64, (32, 64), input_dim=48)
    wanted = {"proj": "image_proj.proj.weight", "k": "ip_adapter.3.to_k_ip.weight"}
    tensors = read_tensors(adapter_file, wanted)
    assert tensors.keys() == wanted.keys()
    for name, stored in wanted.items():
        assert torch.equal(tensors[name], expected[stored])


def test_every_tensor_owns_its_storage(adapter_file: Path) -> None:
    names = {name: name for name in random_adapter_tensors("base", 64, (32, 64), input_dim=48)}
    for tensor in read_tensors(adapter_file, names).values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_the_published_bin_does_share_one_storage(tmp_path: Path) -> None:
    """Keeps the test above honest: without copying, it would see the whole file."""
    tensors = random_adapter_tensors("base", 64, (32, 64), input_dim=48)
    nested = torch.load(save_adapter(tmp_path / "a.bin", tensors, "nested-bin"), weights_only=True)
    total = sum(tensor.numel() * 4 for tensor in tensors.values())
    assert nested["image_proj"]["norm.bias"].untyped_storage().nbytes() == total


def test_the_file_may_be_overwritten_and_deleted_afterwards(adapter_file: Path) -> None:
    expected = random_adapter_tensors("base", 64, (32, 64), input_dim=48)["ip_adapter.3.to_v_ip.weight"]
    tensor = read_tensors(adapter_file, {"v": "ip_adapter.3.to_v_ip.weight"})["v"]
    size = adapter_file.stat().st_size
    with adapter_file.open("r+b") as file:
        file.write(b"\xff" * size)
    assert torch.equal(tensor, expected)
    adapter_file.unlink()
    assert torch.equal(tensor, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_no_mapping_of_the_file_outlives_the_read(adapter_file: Path) -> None:
    kept = read_tensors(adapter_file, {"v": "ip_adapter.3.to_v_ip.weight"})
    assert adapter_file.name not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert kept["v"].shape == (64, 64)


def test_stored_dtypes_are_kept(tmp_path: Path) -> None:
    mixed = {"image_proj.a": torch.ones(3, dtype=torch.float32), "ip_adapter.b": torch.ones(3, dtype=torch.float16)}
    for layout in LAYOUTS:
        tensors = read_tensors(save_adapter(tmp_path / layout, mixed, layout), {name: name for name in mixed})
        assert [tensor.dtype for tensor in tensors.values()] == [torch.float32, torch.float16]


def test_deeply_nested_and_flat_pickles_are_flattened_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "wrapped.ckpt"
    torch.save({"state_dict": {"image_proj": {"a": torch.ones(2)}}, "ip_adapter.1.b": torch.zeros(2), "step": 7}, path)
    tensors = read_tensors(path, {"a": "state_dict.image_proj.a", "b": "ip_adapter.1.b"})
    assert torch.equal(tensors["a"], torch.ones(2))
    assert torch.equal(tensors["b"], torch.zeros(2))


def test_a_strided_view_is_copied_into_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "strided.bin"
    torch.save({"half": torch.arange(12.0).view(3, 4)[:, :2]}, path)
    tensor = read_tensors(path, {"half": "half"})["half"]
    assert tensor.is_contiguous()
    assert tensor.untyped_storage().nbytes() == 24
    assert tensor.tolist() == [[0.0, 1.0], [4.0, 5.0], [8.0, 9.0]]


def test_a_host_that_replaces_torch_load_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_adapter(tmp_path / "a.bin", {"image_proj.a": torch.ones(2)}, "nested-bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: None)
    assert read_tensors(path, {"a": "image_proj.a"})["a"].tolist() == [1.0, 1.0]


def test_a_missing_tensor_is_named(adapter_file: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"no tensor ip_adapter\.5\.to_k_ip\.weight"):
        read_tensors(adapter_file, {"k": "ip_adapter.5.to_k_ip.weight"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"gone\.safetensors cannot be opened"):
        read_tensors(tmp_path / "gone.safetensors", {})


def test_damaged_files_are_named(adapter_file: Path) -> None:
    content = adapter_file.read_bytes()
    adapter_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_tensors(adapter_file, {"v": "ip_adapter.3.to_v_ip.weight"})


def test_a_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_text("<!doctype html>", encoding="utf-8")
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_tensors(path, {"a": "a"})


class _Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "surprise.bin"
    torch.save({"a": torch.ones(1), "b": _Surprise()}, path)
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_tensors(path, {"a": "a"})
    assert "executed" not in capsys.readouterr().out


def test_a_legacy_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "legacy.bin"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_tensors(path, {"a": "a"})


def test_safetensors_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.bin"
    save_file({"a": torch.ones(2)}, str(path))
    assert read_tensors(path, {"a": "a"})["a"].tolist() == [1.0, 1.0]
