"""Files written by torch and safetensors themselves are read as those libraries read them."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from lib_ipadapter.library.checkpoints import checkpoint_base
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.headers import read_header

from .published import published_pickle
from .synthetic import Shapes, adapter_shapes, vision_shapes, write_safetensors, write_torch

torch: Any = pytest.importorskip("torch", reason="these tests compare with torch's own files")
TYPES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def weights(shapes: Shapes) -> dict[str, Any]:
    by_name = {name: dtype for dtype, name in TYPES.items()}
    return {name: torch.zeros(shape, dtype=by_name[dtype]) for name, (dtype, shape) in shapes.items()}


def nested(tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    top: dict[str, dict[str, Any]] = {"image_proj": OrderedDict(), "ip_adapter": OrderedDict()}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        top[group][rest] = tensor
    return top


@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_nested_pickle(dtype: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("faceid_plus", "SD1", narrow=16, dtype=dtype)
    torch.save(nested(weights(shapes)), tmp_path / "ip-adapter-faceid-plus.bin")
    header = read_header(tmp_path / "ip-adapter-faceid-plus.bin")
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == shapes
    report = inspect_file(tmp_path / "ip-adapter-faceid-plus.bin")
    assert (report.kind, report.decided_by) == ("faceid_plus", "name")


def test_views_of_one_storage_and_odd_strides(tmp_path: Path) -> None:
    flat = torch.zeros(1000, dtype=torch.float16)
    tensors = {
        "view": flat[100:400].view(30, 10),
        "transposed": flat[400:800].view(20, 20).T,
        "strided": flat[::2],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "plain": torch.zeros(2, 3, 4),
    }
    torch.save(tensors, tmp_path / "a.bin")
    header = read_header(tmp_path / "a.bin")
    assert {n: (i.dtype, i.shape) for n, i in header.tensors.items()} == {
        name: (TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    loaded = torch.load(tmp_path / "a.bin", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        name: info.shape for name, info in header.tensors.items()
    }


def test_state_dict_with_its_hidden_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    assert set(read_header(tmp_path / "a.pth").tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_whole_modules_parameters_and_old_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "torch.nn.modules.linear.Linear" in inspect_file(path).message
    torch.save({"a": torch.nn.Parameter(torch.zeros(2))}, path)
    assert "torch._utils._rebuild_parameter" in inspect_file(path).message
    torch.save({"b": torch.zeros(2, dtype=torch.float64)}, path)
    assert "torch.DoubleStorage" in inspect_file(path).message
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    assert "old format" in inspect_file(path).message
    assert checkpoint_base(path) is None


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(nested(weights(adapter_shapes("base", "SD1", narrow=16))), path)
    whole = path.read_bytes()
    for share in range(1, 20):
        path.write_bytes(whole[: len(whole) * share // 20])
        report = inspect_file(path)
        assert report.status == "unreadable"
        assert "Truncated" in report.message


def test_synthetic_files_are_what_torch_reads(tmp_path: Path) -> None:
    shapes = adapter_shapes("plus", "SD2", narrow=16, projector_dtype="F32")
    path = write_torch(tmp_path / "a.bin", shapes, size=1 << 25)
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    for name, (dtype, shape) in shapes.items():
        group, _, rest = name.partition(".")
        tensor = loaded[group][rest]
        assert (TYPES[tensor.dtype], tuple(tensor.shape)) == (dtype, shape)


def test_published_files_are_what_torch_writes(tmp_path: Path) -> None:
    for kind in ("faceid", "plus"):
        shapes = adapter_shapes(kind, "SD1", narrow=16, projector_dtype="F32")
        torch.save({group: dict(part) for group, part in nested(weights(shapes)).items()}, tmp_path / "a.bin")
        with zipfile.ZipFile(tmp_path / "a.bin") as archive:
            assert archive.read("a/data.pkl") == published_pickle(shapes)


def test_synthetic_safetensors_are_what_the_library_reads(tmp_path: Path) -> None:
    safetensors: Any = pytest.importorskip("safetensors", reason="compares with the library's own reader")
    shapes = vision_shapes(hidden=64, depth=2, projected=32)
    with safetensors.safe_open(write_safetensors(tmp_path / "a.safetensors", shapes), "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            name: shape for name, (_, shape) in shapes.items()
        }
