"""Damaged files: each damage is named, with both lengths where a length is wrong, and what to do."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from lib_ipadapter.library.catalogue import by_id
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.headers import read_header

from .synthetic import (
    Shapes,
    adapter_shapes,
    pickled_dict,
    pickled_tensor,
    write_safetensors,
    write_torch,
    write_zip,
)

NARROW = adapter_shapes("base", "SD1", narrow=16)


def unreadable(path: Path, *words: str) -> None:
    report = inspect_file(path)
    assert report.status == "unreadable", report
    for word in words:
        assert word in report.message
    assert report.message.endswith(".")
    assert "\n" not in report.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44642768\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <HTML lang=en>", "web page"),
        (b"\xef\xbb\xbf<!doctype html>", "web page"),
        (b"Entry not found", "Not a model file"),
        (b"\x89PNG\r\n\x1a\n", "Not a model file"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"{", "Not a model file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "old format"),
    ],
)
def test_what_is_not_a_model(content: bytes, words: str, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".bin"):
        path = tmp_path / f"ip-adapter_sd15{suffix}"
        path.write_bytes(content)
        unreadable(path, words)
        with pytest.raises(AdapterFileError, match=words.split(" (", maxsplit=1)[0]):
            read_header(path)


@pytest.mark.parametrize("suffix", [".part", ".crdownload", ".PARTIAL", ".aria2"])
def test_unfinished_download(suffix: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / f"ip-adapter.safetensors{suffix}", NARROW)
    unreadable(path, "unfinished download", str(path.stat().st_size))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    unreadable(tmp_path / "nothing.safetensors", "no file")
    (tmp_path / "folder.safetensors").mkdir()
    unreadable(tmp_path / "folder.safetensors", "folder")
    unreadable(Path("nul\0byte.safetensors"), "cannot")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", NARROW)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    unreadable(path, "Permission denied")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    unreadable(tmp_path / "pipe.safetensors", "not a file")


@pytest.mark.parametrize("keep", [9, 100, 5000, 40_000_000, 44_642_767])
def test_truncated_safetensors(keep: int, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "renamed.safetensors", adapter_shapes("base", "SD1"))
    os.truncate(path, keep)
    expected = 44_642_768 if keep >= 5000 else int.from_bytes(path.read_bytes()[:8], "little") + 8
    unreadable(path, "Truncated", str(keep), str(expected))


def test_trailing_bytes(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", NARROW)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    unreadable(path, str(size), str(size + 4))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.999, 0.9999999])
def test_truncated_zip(share: float, flat: bool, tmp_path: Path) -> None:
    shapes = adapter_shapes("base", "SD1")
    path = write_torch(tmp_path / "a.bin", shapes, flat_storage=flat)
    payload = 44_638_208
    keep = int(path.stat().st_size * share)
    os.truncate(path, keep)
    report = inspect_file(path)
    numbers = [int(word.rstrip(";,.")) for word in report.message.split() if word.rstrip(";,.").isdigit()]
    assert report.message.startswith("Truncated")
    assert numbers[0] == keep
    assert payload < numbers[1] < payload + 20_000


@pytest.mark.parametrize("keep", [4, 10, 29, 40])
def test_truncated_in_its_first_record(keep: int, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "a.bin", NARROW)
    os.truncate(path, keep)
    unreadable(path, "Truncated", f"has {keep} bytes")


def test_truncated_before_the_list_of_tensors_ends(tmp_path: Path) -> None:
    known = by_id("sd15_light_v11")
    path = write_torch(tmp_path / known.name, adapter_shapes("base", "SD1"))
    os.truncate(path, 1000)
    unreadable(path, "Truncated", "1000", str(known.bytes))  # the second from the table of published files


def test_zip_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "ip-adapter.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ip-adapter_sd15.safetensors", b"x")
        archive.writestr("readme.txt", b"x")
    unreadable(path, "zip archive of 2 files", "unpack")


@pytest.mark.parametrize("name", ["antelopev2.zip", "antelopev2.bin", "renamed.pth"])
def test_zip_of_face_models(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("antelopev2/glintr100.onnx", b"x")
        archive.writestr("antelopev2/scrfd_10g_bnkps.onnx", b"x")
    report = inspect_file(path)
    assert (report.status, report.kind, report.variant) == ("not_adapter", "face_model", "antelopev2")


def test_flipped_byte_in_the_pickle(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "a.bin", NARROW)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    unreadable(path, "checksum")


def test_storage_record_missing_or_short(tmp_path: Path) -> None:
    tensor = pickled_dict({"image_proj": {"proj.weight": pickled_tensor("0", "F16", 100, 0, (10, 10))}})
    pickle = b"\x80\x02" + tensor + b"."
    unreadable(write_zip(tmp_path / "a.bin", pickle, {}), "data/0", "200 bytes", "missing")
    unreadable(write_zip(tmp_path / "b.bin", pickle, {"0": 100}), "data/0", "200 bytes", "has 100")


def test_file_without_tensors(tmp_path: Path) -> None:
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", {}, metadata={"format": "pt"}))
    assert (report.status, report.message) == ("not_adapter", "A file without tensors.")


# -- adapters that are whole files but not whole adapters


def without(*parts: str, shapes: Shapes = NARROW) -> Shapes:
    return {name: info for name, info in shapes.items() if not any(part in name for part in parts)}


def reshaped(name: str, *shape: int, shapes: Shapes = NARROW) -> Shapes:
    assert name in shapes
    return {**shapes, name: ("F16", shape)}


FACEID = adapter_shapes("faceid", "SD1", narrow=16)
FACEID_PLUS = adapter_shapes("faceid_plus", "SD1", narrow=16)
FULL_FACE = adapter_shapes("full_face", "SD1", narrow=16)
PLUS = adapter_shapes("plus", "SD1", narrow=16)
HALF = {
    "half a pair": (without(".7.to_v_ip"), ("layer 7 has to_k_ip and no to_v_ip",)),
    "other half": (without(".9.to_k_ip"), ("layer 9 has to_v_ip and no to_k_ip",)),
    "no values": (without("to_v_ip"), ("layer 1 has to_k_ip and no to_v_ip",)),
    "missing layer": (without("ip_adapter.31."), ("15 of 16 SD1 layers", "missing one is 31")),
    "missing half": (without(*(f"ip_adapter.{n}." for n in range(17, 32))), ("8 of 16",)),
    "projector only": (without("ip_adapter."), ("only a projector", "4 tensors")),
    "attention only": (without("image_proj."), ("only attention weights", "32 tensors")),
    "width": (reshaped("ip_adapter.3.to_k_ip.weight", 17, 768), ("layer 3", "[17, 768]", "[16, 768]")),
    "context": (
        reshaped("ip_adapter.3.to_k_ip.weight", 16, 99, shapes=reshaped("ip_adapter.3.to_v_ip.weight", 16, 99)),
        ("[99, 768]",),
    ),
    "dimensions": (reshaped("ip_adapter.3.to_k_ip.weight", 16), ("[16]",)),
    "bias": (reshaped("image_proj.proj.bias", 5), ("proj.bias", "[5]", "[3072]")),
    "no bias": (without("proj.bias"), ("lacks proj.bias",)),
    "tokens": (reshaped("image_proj.proj.weight", 1000, 1024), ("proj.weight", "[1000, 1024]")),
    "latents": (reshaped("image_proj.latents", 2, 16, 64, shapes=PLUS), ("latents",)),
    "no proj_in": (without("proj_in.weight", shapes=PLUS), ("proj_in.weight",)),
    "no scale": (without("proj.bias", "norm.weight"), ("lacks proj.bias",)),
    "no norm": (without("norm.weight"), ("lacks norm.weight",)),
    "no matrix": (without("proj.weight"), ("lacks proj.weight",)),
    "no latents": (without("latents", shapes=PLUS), ("lacks latents",)),
    "no output": (without("proj_out.weight", shapes=PLUS), ("lacks proj_out.weight",)),
    "full-face, no norm": (without("proj.3", shapes=FULL_FACE), ("lacks proj.3.weight",)),
    "full-face, no scale": (without("proj.3.weight", shapes=FULL_FACE), ("lacks proj.3.weight",)),
    "full-face, no input": (without("proj.0.weight", shapes=FULL_FACE), ("lacks proj.0.weight",)),
    "FaceID, no norm": (without("image_proj.norm", shapes=FACEID), ("lacks norm.weight",)),
    "FaceID, no output": (without("proj.2.weight", shapes=FACEID), ("lacks proj.2.weight",)),
    "FaceID Plus, no input": (without("image_proj.proj.0.weight", shapes=FACEID_PLUS), ("lacks proj.0.weight",)),
    "FaceID Plus, no resampler input": (
        without("proj_in.weight", shapes=FACEID_PLUS), ("lacks perceiver_resampler.proj_in.weight",),
    ),
    "no queries": (without("to_q", shapes=PLUS), ("to_q",)),
    "output": (reshaped("image_proj.proj_out.weight", 1024, 64, shapes=PLUS), ("proj_out.weight", "[768, 64]")),
    "LoRA count": (without("30.to_out_lora.up", shapes=FACEID), ("255 of 256",)),
    "LoRA ranks": (
        reshaped(
            "ip_adapter.0.to_q_lora.up.weight", 16, 8,
            shapes=reshaped("ip_adapter.0.to_q_lora.down.weight", 8, 16, shapes=FACEID),
        ),
        ("several ranks", "[4, 8]"),
    ),
    "LoRA shape": (
        reshaped("ip_adapter.1.to_k_lora.down.weight", 4, 16, shapes=FACEID), ("1.to_k_lora.down", "[4, 768]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("case", HALF)
def test_incomplete_adapter(case: str, container: str, tmp_path: Path) -> None:
    shapes, words = HALF[case]
    write = write_safetensors if container == "safetensors" else write_torch
    unreadable(write(tmp_path / f"a.{container}", shapes), *words)
