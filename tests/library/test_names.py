"""Names that files bring along: of any length, made to hurt, made to be printed or unfit for any encoding."""

from __future__ import annotations

import json
import os
import struct
import time
import zipfile
from pathlib import Path

import pytest

from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.files import FolderIndex, scan
from lib_ipadapter.library.printable import is_text, shown, shown_path

from .synthetic import Shapes, adapter_shapes, pickled_dict, pickled_tensor, write_safetensors, write_zip

NARROW = adapter_shapes("base", "SD1", narrow=16)
TERMINAL = "\x1b[2Jgone\nnext line\u202e"
HALF_A_PAIR = "\ud800"


def test_shown() -> None:
    assert shown("image_proj.proj.weight") == "image_proj.proj.weight"
    assert shown("modèle 模型") == "modèle 模型"
    assert shown(TERMINAL) == "\\x1b[2Jgone\\nnext line\\u202e"
    assert shown(HALF_A_PAIR + "\udcff") == "\\ud800\\udcff"
    assert shown("x" * 100) == "x" * 100
    assert shown("x" * 101) == "x" * 100 + "..."
    assert shown("\n" * 100) == "\\n" * 50 + "..."
    assert shown("x" * 10_000_000, 5) == "xxxxx..."
    assert shown_path(Path("a" * 300) / "b\n") == "a" * 300 + os.sep + "b\\n"
    assert is_text("模型")
    assert not is_text("\udcff")


# -- tensors' names


def hostile(path: Path, *names: str) -> Path:
    document = {
        name: {"dtype": "F16", "shape": [2], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(names)
    }
    text = json.dumps(document).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * len(names)))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks_1" + "_attn1_a" * 12_500,
        "module." * 110_000 + "x",
        "image_proj." + "x" * 2_000_000,
        "x" * 501,
    ],
)
def test_a_name_longer_than_any_model_s_is_refused_at_once(name: str, tmp_path: Path) -> None:
    began = time.process_time()
    report = inspect_file(hostile(tmp_path / "a.safetensors", name))
    assert time.process_time() - began < 2
    assert report.status == "unreadable"
    assert f"{len(name)} characters, more than the 500" in report.message
    assert len(report.message) < 300


@pytest.mark.parametrize(
    "start",
    [
        "down_blocks_1" + "_attn1_a" * 60,
        "module." * 70,
        "down_blocks.0" + ".attn1.processor.to_k_ip" * 19,
        "\\w." * 150,
    ],
)
def test_many_names_of_the_permitted_length_take_no_long_time(start: str, tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.safetensors", *(f"{start}{number}" for number in range(5_000)))
    began = time.process_time()
    report = inspect_file(path)
    assert time.process_time() - began < 5
    assert report.status == "not_adapter"
    assert len(report.message) < 500


SENTENCES: dict[str, Shapes] = {
    "nothing known": {},
    "attention key": {**NARROW, "ip_adapter.1.": ("F16", (4, 4))},
    "projector": {**{n: i for n, i in NARROW.items() if "image_proj" not in n}, "image_proj.": ("F16", (4,))},
    "one tensor more": {**NARROW, "image_proj.": ("F16", (4,))},
    "type": {**NARROW, "image_proj.": ("I64", (4,))},
}


@pytest.mark.parametrize("name", [TERMINAL, "x" * 400, HALF_A_PAIR])
@pytest.mark.parametrize("case", SENTENCES)
def test_names_in_sentences_are_printable_and_short(case: str, name: str, tmp_path: Path) -> None:
    shapes = SENTENCES[case]
    last = next(reversed(shapes), "")
    renamed = {(n + name if n == last else n): info for n, info in shapes.items()} or {name: ("F16", (4,))}
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", renamed))
    assert report.status in ("unsupported", "not_adapter")
    assert shown(name, 80) in report.message
    assert report.message.isprintable()
    assert len(report.message) < 400


def test_names_inside_a_torch_file_are_printable_and_short(tmp_path: Path) -> None:
    for number, name in enumerate((TERMINAL, "k" * 3_000_000)):
        tensor = pickled_tensor(name, "F16", 4, 0, (4,))
        once = b"\x80\x02" + pickled_dict({"a": tensor}) + b"."
        twice = b"\x80\x02" + pickled_dict({"a": tensor, "b": pickled_tensor(name, "F32", 4, 0, (4,))}) + b"."
        called = b"\x80\x04\x8c\x09" + b"\x1b[31mevil" + b"\x8c\x06system\x93."
        for at, pickle in enumerate((once, twice, called)):
            report = inspect_file(write_zip(tmp_path / f"{number}{at}.bin", pickle, {}))
            assert report.status == "unreadable"
            assert report.message.isprintable(), report.message
            assert len(report.message) < 400


def test_names_of_a_zip_s_records_are_printable_and_short(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}{TERMINAL}{'n' * 60_000}", b"")
    report = inspect_file(path)
    assert "zip archive of 3 files" in report.message
    assert report.message.isprintable()
    assert len(report.message) < 500


# -- files' names


def oddly_named(folder: Path, name: bytes) -> Path:
    path = os.fsencode(folder) + b"/" + name
    try:
        with Path(os.fsdecode(path)).open("wb") as file:
            file.write(b"x")
    except (OSError, ValueError) as error:
        pytest.skip(f"no such name here: {error}")
    return Path(os.fsdecode(path))


def test_a_file_whose_name_no_encoding_can_write_is_a_problem_not_an_entry(tmp_path: Path) -> None:
    path = oddly_named(tmp_path, b"bad\xff.safetensors")
    oddly_named(tmp_path, b"notes\xff.txt")
    write_safetensors(tmp_path / "good.safetensors", NARROW)
    listing = FolderIndex((tmp_path,)).listing()
    assert [file.name for file in listing.files] == ["good.safetensors"]
    assert len(listing.problems) == 1
    assert "bad\\udcff.safetensors is not listed: its name is not valid UTF-8; rename it." in listing.problems[0]
    json.dumps(listing.problems, ensure_ascii=False).encode()
    listing.searched().encode()
    assert inspect_file(path).message.isprintable()
    assert inspect_file(path.with_name("gone\udcff.safetensors")).message.isprintable()


def test_a_folder_of_such_a_name_hides_nothing(tmp_path: Path) -> None:
    try:
        (tmp_path / "odd\udcff").mkdir()
    except (OSError, ValueError) as error:
        pytest.skip(f"no such name here: {error}")
    write_safetensors(tmp_path / "odd\udcff" / "a.safetensors", NARROW)
    listing = scan((tmp_path,))
    assert listing.files == ()
    assert "odd\\udcff" in listing.problems[0]
    assert "rename it" in listing.problems[0]
    listing.problems[0].encode()


def test_a_folder_s_name_in_a_sentence_is_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "a\nb"
    try:
        locked.mkdir()
    except OSError as error:
        pytest.skip(f"no such name here: {error}")

    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert "a\\nb cannot be read" in scan((locked,)).problems[0]
    assert "a\\nb" in scan((locked,)).searched()
