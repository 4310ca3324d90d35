"""Files made to hurt: whatever they say, reading stays within bounds of time and memory and ends in a sentence."""

from __future__ import annotations

import json
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib_ipadapter.library.checkpoints import checkpoint_base
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.headers import MAX_HEADER_BYTES, read_header
from lib_ipadapter.library.pickles import read_pickle

from .synthetic import adapter_shapes, pickled_dict, pickled_tensor, write_safetensors, write_torch, write_zip


@contextmanager
def bounded(seconds: float = 10, mebibytes: float = 200) -> Iterator[None]:
    """Fail when the block takes more processor time or memory; generous, since it stands against minutes and GiB."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took < seconds
    assert peak < mebibytes * (1 << 20)


def refused(path: Path, *words: str) -> None:
    with bounded():
        report = inspect_file(path)
    assert report.status == "unreadable", report
    for word in words:
        assert word in report.message, report.message
    assert len(report.message) < 600
    assert checkpoint_base(path) is None


# -- safetensors


def header(path: Path, document: object, *, data: int = 0, length: int | None = None) -> Path:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.truncate(8 + len(text) + data)
    return path


def record(begin: object, end: object, shape: object = (4,), dtype: object = "F16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"a": record(0, 8), "b": record(4, 12)}, "overlaps"),
        ({"a": record(0, 8), "b": record(16, 24)}, "gap"),
        ({"a": record(-8, 0)}, "bytes -8"),
        ({"a": record(8, 0)}, "bytes 8 to 0"),
        ({"a": record(0, 16)}, "needs 8 bytes"),
        ({"a": record(0, 8, (-4, -1))}, "damaged"),
        ({"a": record(0, 8, (2**40, 2**40, 2**40))}, "needs"),
        ({"a": record(0, 8, [4] * 17)}, "makes no sense"),
        ({"a": record(0, 8.0)}, "makes no sense"),
        ({"a": record(False, True)}, "makes no sense"),
        ({"a": record(0, 8, dtype=16)}, "makes no sense"),
        ({"a": record(0, 8, shape="four")}, "makes no sense"),
        ({"a": {"dtype": "F16"}}, "incomplete"),
        ({"a": None}, "incomplete"),
        ({"a": [1, 2, 3]}, "incomplete"),
        (b'{"a"', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": \xff}', "not valid JSON"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "deep"),
        (b'{"a": ' + b'{"a":' * 100_000, "deep"),
        (b'{"a":' + b"[" * 2_000_000, "strings"),
        (b"{" + b'"a":0,' * 1_500_000 + b'"a":0}', "strings"),
        (b'{"a":{"dtype":"F16","shape":[' + b"1," * 5_000_000 + b'1],"data_offsets":[0,24]}}', "commas"),
    ],
)
def test_header_that_makes_no_sense(document: object, words: str, tmp_path: Path) -> None:
    refused(header(tmp_path / "a.safetensors", document, data=24), words)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_header_that_claims_a_huge_length(length: int, tmp_path: Path) -> None:
    refused(header(tmp_path / "a.safetensors", {"a": record(0, 8)}, length=length), str(length))
    path = header(tmp_path / "b.safetensors", {"a": record(0, 8)}, length=1 << 38, data=1 << 39)
    refused(path, "claims")  # the file is long enough, the header still is not believed


def test_hostile_metadata_is_ignored(tmp_path: Path) -> None:
    for metadata in ({"a": {"b": [1, 2]}}, [1, 2], "text", None):
        path = header(tmp_path / "a.safetensors", {"__metadata__": metadata, "a": record(0, 8)}, data=8)
        assert read_header(path).metadata == {}


# -- pickles


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_Calls(print, "x"), "print"),
        (_Calls(eval, "1"), "eval"),
        (_Calls(__import__("os").system, "true"), "system"),
        (_Calls(__import__("subprocess").Popen, "true"), "Popen"),
        (Path("x"), "Path"),
        ({"image_proj": {"x": _Calls(getattr, "x", "y")}}, "getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_any_other_global_is_refused_by_name(value: object, name: str, protocol: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", pickle.dumps(value, protocol), {})
    refused(path, "asks for", name, "safetensors")


@pytest.mark.parametrize("name", ["torch._utils._rebuild_parameter", "torch.load", "torch.storage._load_from_bytes"])
def test_torch_s_own_other_globals_are_refused_too(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    refused(write_zip(tmp_path / "a.bin", f"\x80\x02c{module}\n{function}\n.".encode("latin-1"), {}), name)


TENSOR = pickled_tensor("0", "F16", 4, 0, (2, 2))
DEEP = b"}" + b"".join(b"(X\x01\x00\x00\x00a}" for _ in range(30_000)) + b"u" * 30_000
BOMB = b")" + b"2\x86" * 100_000  # a tuple of the tuple before it, twice
PICKLES = {
    "nothing": b"",
    "only a stop": b".",
    "pop from nothing": b"0.",
    "no mark": b"t.",
    "unknown memo": b"h\x05.",
    "unknown instruction": b"\xff.",
    "old instruction": b"I1\n.",
    "huge memo index": b"}r\xff\xff\xff\xff.",
    "huge text": b"X\xff\xff\xff\xffabc.",
    "huger text": b"\x8d" + b"\xff" * 8 + b"abc.",
    "huge number": b"\x8a\xff" + b"\x7f" * 255 + b".",
    "deep dicts": DEEP + b".",
    "doubled tuples": BOMB + b".",
    "doubled tuples as a key": b"}" + BOMB + b"K\x01s.",
    "doubled tuples as a shape": TENSOR[: TENSOR.index(b"K\x00(K")] + b"K\x00" + BOMB + BOMB + b"\x89)tR.",
    "endless": b"}" + b"20" * 500_001 + b".",
    "many dicts": b"]" + b"}a" * 250_000 + b".",
    "list as a key": b"}](K\x01es.",
    "key is a list": b"}]K\x01s.",
    "call a dict": b"})R.",
    "call a tensor": TENSOR + b")R.",
    "build on a number": b"K\x01}b.",
    "append to a number": b"K\x01K\x02a.",
    "set on a number": b"K\x01K\x02K\x03s.",
    "odd items": b"}(K\x01u.",
    "global without end": b"c" + b"x" * 100_000,
    "global of numbers": b"K\x01K\x02\x93.",
    "persistent number": b"K\x05Q.",
    "rebuild of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "rebuild of numbers": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01K\x01K\x01tR.",
    "storage without type": b"(X\x07\x00\x00\x00storageK\x01X\x01\x00\x00\x000K\x01K\x01tQ.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickle_that_makes_no_sense(case: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", b"\x80\x02" + PICKLES[case], {"0": 8})
    with bounded(mebibytes=300):
        report = inspect_file(path)
    assert report.status in ("unreadable", "not_adapter")
    assert report.adapter is None
    assert len(report.message) < 600
    assert checkpoint_base(path) is None


@pytest.mark.parametrize(
    ("numel", "offset", "shape"),
    [(4, 0, (5,)), (4, 1, (2, 2)), (4, 0, (1 << 40,)), (1 << 60, 0, (2,)), (4, 0, (1,) * 9)],
)
def test_tensor_outside_its_storage(numel: int, offset: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    body = pickled_dict({"image_proj": {"proj.weight": pickled_tensor("0", "F16", numel, offset, shape)}})
    refused(write_zip(tmp_path / "a.bin", b"\x80\x02" + body + b".", {"0": 8}), "damaged")


def test_tensor_larger_than_its_storage_by_stride_zero(tmp_path: Path) -> None:
    body = TENSOR.replace(b"(K\x02K\x02t(K\x02K\x01t", b"(J\xff\xff\xff\x7fK\x02t(K\x00K\x01t")
    assert body != TENSOR
    refused(write_zip(tmp_path / "a.bin", b"\x80\x02" + pickled_dict({"a": body}) + b".", {"0": 8}), "storage of 4")


def test_storage_described_twice(tmp_path: Path) -> None:
    body = pickled_dict({"a": TENSOR, "b": pickled_tensor("0", "F32", 4, 0, (4,))})
    refused(write_zip(tmp_path / "a.bin", b"\x80\x02" + body + b".", {"0": 16}), "two ways")


def test_names_that_collide_once_flattened(tmp_path: Path) -> None:
    body = pickled_dict({"a": {"b.c": TENSOR}, "a.b": {"c": TENSOR}})
    refused(write_zip(tmp_path / "a.bin", b"\x80\x02" + body + b".", {"0": 8}), "a.b.c twice")


def test_lenient_reading_executes_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    value = {"x": _Calls(Path.touch, mark), "y": Path("z"), "z": {1, 2, 3} and [1.5, b"bytes", None, True]}
    data = pickle.dumps(value, 2)
    tensors, _ = read_pickle(data, lenient=True)
    assert tensors == {}
    assert not mark.exists()
    with pytest.raises(AdapterFileError):
        read_pickle(data)


# -- zips


def test_zip_bomb_in_place_of_the_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(MAX_HEADER_BYTES + 1))
    refused(path, str(MAX_HEADER_BYTES + 1))


def test_zip_bomb_that_lies_about_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(100 << 20))
    content = path.read_bytes().replace(struct.pack("<L", 100 << 20), struct.pack("<L", 1000))
    path.write_bytes(content)
    refused(path, "checksum")


def test_packed_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled_dict({"x": TENSOR}) + b".")
        archive.writestr("a/data/0", bytes(8), zipfile.ZIP_STORED)
    assert list(read_header(path).tensors) == ["x"]


def test_packed_tensors_are_refused(tmp_path: Path) -> None:
    for name, length in (("small", 8), ("large", 1 << 20)):
        path = tmp_path / f"{name}.bin"
        body = pickled_dict({"x": pickled_tensor("0", "F16", length // 2, 0, (length // 2,))})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
            archive.writestr("a/data/0", bytes(length))
        refused(path, "compressed", "torch does not write", "save it again")


def test_record_beyond_every_file(tmp_path: Path) -> None:
    """A 64-bit place in the file that no system can even seek to."""
    name = b"a/data.pkl"
    wide = struct.pack("<2HQ", 1, 8, (1 << 64) - 1)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 1, 1, len(name), 12, 0, 0, 0, 0, 0xFFFFFFFF)
    directory = entry + name + wide
    start = b"PK\x03\x04" + bytes(60)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(directory), len(start), 0)
    path = tmp_path / "a.bin"
    path.write_bytes(start + directory + end)
    refused(path, "no record at byte 18446744073709551615")


@pytest.mark.parametrize(
    ("count", "length", "start"),
    [(1, 1 << 31, 0), (60_000, 46, 0), (1, 46, 1 << 31), (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)],
)
def test_zip_directory_that_lies(count: int, length: int, start: int, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "a.bin", adapter_shapes("base", "SD1", narrow=16))
    content = bytearray(path.read_bytes())
    content[-22:] = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, length, start, 0)
    path.write_bytes(content)
    refused(path)


def test_wide_zip_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("a/data.pkl", "w", force_zip64=True) as entry:
            entry.write(b"\x80\x02" + pickled_dict({"x": TENSOR}) + b".")
        archive.writestr("a/data/0", bytes(8))
    assert list(read_header(path).tensors) == ["x"]


# -- garbage


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    starts = (b"", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{", b"\x80\x02", b"\x08\x06", b"{", b"<")
    for number in range(150):
        path = tmp_path / f"{number}{chance.choice(('.safetensors', '.bin', '.onnx', '.zip'))}"
        path.write_bytes(chance.choice(starts) + chance.randbytes(chance.randrange(300)))
        report = inspect_file(path)
        assert report.status in ("unreadable", "not_adapter")
        assert report.message
        assert checkpoint_base(path) is None


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed: int, container: str, tmp_path: Path) -> None:
    chance = random.Random(seed)
    write = write_safetensors if container == "safetensors" else write_torch
    # Small tensors, so that the flipped bytes fall on what is read.
    names = ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight")
    path = write(tmp_path / "a.bin", dict.fromkeys(names, ("F16", (4, 4))))
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        del content[chance.choice((len(content), chance.randrange(len(content)))) :]
        path.write_bytes(content)
        report = inspect_file(path)
        assert report.status != "supported"
        assert report.message


@pytest.mark.parametrize("seed", range(4))
def test_random_pickle_instructions(seed: int) -> None:
    chance = random.Random(seed)
    codes = b"(.012JKMGNX)]}tld\x85\x86\x87aesucRbQqrhj\x8a\x8c\x93\x94\x81\x88\x89"
    pieces = [TENSOR, b"ccollections\nOrderedDict\n", b"X\x01\x00\x00\x00a", *(bytes([code]) for code in codes)]
    for _ in range(1500):
        data = b"\x80\x02" + b"".join(chance.choice(pieces) for _ in range(chance.randrange(40))) + b"."
        for lenient in (False, True):
            try:
                read_pickle(data, lenient=lenient)
            except (AdapterFileError, EOFError) as error:
                assert len(str(error)) < 400
