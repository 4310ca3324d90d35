"""What goes in and out of an ONNX file, read without its weights, and what no file can make of the reader."""

from __future__ import annotations

import io
import random
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from lib_ipadapter.library import archives, onnx_headers
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.onnx_headers import OnnxHeader, OnnxValue, face_role, read_onnx_header
from lib_ipadapter.library.streams import Span, open_record

from .onnx_bytes import (
    DETECTOR_OUTPUTS,
    FLOAT16,
    INT64,
    detector,
    field,
    landmarks,
    model,
    number,
    recogniser,
    value_info,
    weight,
    write_large,
)


def header(raw: bytes) -> OnnxHeader:
    return read_onnx_header(Span(io.BytesIO(raw), 0, len(raw)))


def refusal(raw: bytes) -> str:
    with pytest.raises(AdapterFileError) as caught:
        header(raw)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


# -- what is read


def test_a_detector_s_signature() -> None:
    found = header(detector())
    assert (found.ir_version, found.producer, found.external) == (6, "pytorch", False)
    assert found.inputs == (OnnxValue("input.1", "float32", (1, 3, "?", "?")),)
    assert {value.name: value.shape for value in found.outputs} == DETECTOR_OUTPUTS


def test_dimensions_and_types_as_they_come() -> None:
    inputs = {"a": (-1, None, "batch"), "b": (), "c": None}
    found = header(model(inputs, {"out": (1 << 40,)}, element=INT64))
    assert [value.shape for value in found.inputs] == [(-1, "", "batch"), (), None]
    assert found.outputs == (OnnxValue("out", "int64", (1 << 40,)),)
    odd = model({"a": (1,)}, {"b": (1,)}, element=77)
    assert header(odd).inputs[0].element == "type 77"
    sequence = field(7, field(11, field(1, "s") + field(2, field(4, b""))) + field(12, value_info("o", (1,))))
    assert header(field(1, 6) + sequence + field(8, b"")).inputs == (OnnxValue("s", "", None),)


def test_weights_that_old_files_list_as_inputs_are_none() -> None:
    weights = [weight("conv.w", [1.0]), weight("conv.b", [2.0])]
    raw = model({"data": (1, 3, 112, 112)}, {"fc1": (1, 512)}, weights=weights, weights_are_inputs=["conv.w", "conv.b"])
    found = header(raw)
    assert [value.name for value in found.inputs] == ["data"]
    assert face_role(found) == "recogniser"


def test_weights_in_another_file_are_noticed() -> None:
    outside = field(1, 4) + field(2, 1) + field(8, "w") + field(13, field(1, "location") + field(2, "w.bin"))
    raw = model({"a": (1,)}, {"b": (1,)}, weights=[outside + field(14, 1)])
    assert header(raw).external
    assert not header(model({"a": (1,)}, {"b": (1,)}, weights=[outside + field(14, 0)])).external


def test_two_hundred_and_sixty_megabytes_cost_a_few_kilobytes(tmp_path: Path) -> None:
    """300 weights of nearly a megabyte, as holes; what is counted is what leaves the disk."""
    path = write_large(tmp_path / "large.onnx", count=300, size=870_000)
    assert path.stat().st_size > 260_000_000
    with Counting(path) as raw:
        found = read_onnx_header(Span(raw, 0, path.stat().st_size))
    assert face_role(found) == "recogniser"
    assert raw.total < 400_000
    tracemalloc.start()
    with path.open("rb", buffering=0) as file:
        read_onnx_header(Span(file, 0, path.stat().st_size))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


class Counting(io.FileIO):
    """A file that adds up what is read of it."""

    total = 0

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        got = super().readinto(buffer)
        self.total += got
        return got


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_s_record_reads_like_a_file(method: int, tmp_path: Path) -> None:
    raw = recogniser(weights=200_000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("first.txt", b"x")
        archive.writestr("antelopev2/glintr100.onnx", raw)
    with path.open("rb") as file:
        total = path.stat().st_size
        entry = (archives.read_directory(file, total) or [])[1]
        assert read_onnx_header(open_record(file, total, entry)) == header(raw)
        stream = open_record(file, total, entry)
        stream.skip(1000)
        assert stream.read(len(raw) - 1000) == raw[1000:]
        with pytest.raises(AdapterFileError, match="Truncated"):
            stream.read(1)
        lies = entry._replace(size=entry.size - 1, packed=entry.packed - (method == zipfile.ZIP_STORED))
        shorter = open_record(file, total, lies)
        if method == zipfile.ZIP_DEFLATED:
            with pytest.raises(AdapterFileError, match="unpacks to more"):
                shorter.skip(lies.size)
        for wrong in (entry._replace(method=12), entry._replace(packed=total), entry._replace(offset=total - 3)):
            with pytest.raises(AdapterFileError):
                open_record(file, total, wrong)
        longer = entry._replace(size=entry.size + 1)
        with pytest.raises(AdapterFileError, match=r"Truncated|stored in"):
            open_record(file, total, longer).skip(longer.size)


# -- roles


@pytest.mark.parametrize(
    ("raw", "role"),
    [
        (detector(), "detector"),
        (detector(size=("height", None)), "detector"),
        (detector(size=(640, 640)), ""),
        (model({"x": ("n", 3, "?", "?")}, {str(n): None for n in range(9)}), "detector"),
        (model({"x": (2, 3, "?", "?")}, DETECTOR_OUTPUTS), ""),
        (model({"x": (1, 1, "?", "?")}, DETECTOR_OUTPUTS), ""),
        (model({"x": (1, 3, "?", "?")}, dict(list(DETECTOR_OUTPUTS.items())[:6])), ""),
        (model({"x": (1, 3, "?", "?")}, dict(reversed(DETECTOR_OUTPUTS.items()))), ""),
        (recogniser(), "recogniser"),
        (recogniser(side=160), "recogniser"),
        (recogniser(side=96), ""),
        (recogniser(side=120), ""),
        (recogniser(width=128), ""),
        (model({"x": (1, 3, 112, 112)}, {"a": (1, 512), "b": (1, 512)}), ""),
        (model({"x": (1, 3, 112, 112), "y": (1, 512)}, {"a": (1, 512)}), ""),
        (model({"x": (1, 3, 112, 128)}, {"a": (1, 512)}), ""),
        (model({"x": (1, 3, 112, 112)}, {"a": None}), ""),
        (model({"x": None}, {"a": (1, 512)}), ""),
        (model({"x": (1, 3, 112, 112)}, {"a": (1, 512)}, element=FLOAT16), ""),
        (landmarks(), ""),
        (landmarks(width=212), ""),
        (model({"data": ("None", 3, 96, 96)}, {"fc1": (1, 3)}), ""),
        (model({"target": (1, 3, 128, 128), "source": (1, 512)}, {"output": (1, 3, 128, 128)}), ""),
    ],
)
def test_roles(raw: bytes, role: str) -> None:
    assert face_role(header(raw)) == role


# -- damage


def test_every_cut_is_a_sentence() -> None:
    for whole in (detector(), recogniser()):
        for length in range(len(whole)):
            refusal(whole[:length])
    for length in (10, 100, len(recogniser()) - 1):
        assert "Truncated" in refusal(recogniser()[:length])


def test_random_damage_ends_in_a_header_or_a_sentence() -> None:
    chance = random.Random(1)
    whole = detector()
    for _ in range(2000):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            header(bytes(raw))
        except AdapterFileError as error:
            assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 260665334\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04", "Not an ONNX model"),
        (b"\x08", "breaks off"),
        (b"\x08\x06", "without a graph"),
        (b"\x08\x06" + field(7, field(11, value_info("x", (1,)))) + field(8, b""), "without a graph"),
        (b"\x08\x00" + field(7, field(12, value_info("x", (1,))) * 2) + field(8, b""), "without a graph"),
        (b"\x08" + b"\xff" * 20, "has no end"),
        (b"\x08\x06\x0b", "protobuf does not have"),
        (b"\x08\x06\x02\x00", "protobuf does not have"),
        (b"\x08\x06" + bytes(1000), "protobuf does not have"),
        (b"\x08\x06" + field(7, b"\x5a\x7f") + bytes(200), "over the end"),
        (b"\x08\x06" + field(7, b"\x08\xff") + b"\x01" + bytes(9), "over the end"),
        (b"\x08\x06" + number(7 << 3 | 2) + number(1 << 62), "should reach byte"),
    ],
)
def test_named_damage(raw: bytes, words: str) -> None:
    assert words in refusal(raw)


def test_a_missing_end_is_a_cut() -> None:
    raw = recogniser()
    assert "operator sets" in refusal(raw[: -len(field(8, field(2, 11)))])


def hostile() -> dict[str, bytes]:
    value = field(11, b"")
    deep = field(1, number(2 << 3) + number(5))
    return {
        "fields": b"\x08\x06" + field(7, field(13, b"") * 100_000),
        "inputs": b"\x08\x06" + field(7, value * 100_000),
        "dimensions": b"\x08\x06" + field(7, field(11, field(2, field(1, field(2, deep * 40))))),
        "name": b"\x08\x06" + field(7, field(11, field(1, b"x" * 5000))),
        "names": b"\x08\x06" + field(7, field(5, field(8, b"n" * 4000)) * 5000),
        "varints": b"\x08\x06" + (b"\x80" * 9 + b"\x01") * 100_000,
    }


@pytest.mark.parametrize("kind", hostile())
def test_hostile_files_are_refused_in_bounded_time_and_memory(kind: str) -> None:
    raw = hostile()[kind]
    began = time.process_time()
    refusal(raw)
    assert time.process_time() - began < 5
    tracemalloc.start()
    refusal(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * onnx_headers.MAX_BYTES + (8 << 20)
