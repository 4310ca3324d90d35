"""A model file's tensors without their data: names, types and shapes; `detection` and `core` start from it.

Reads a safetensors header, or a torch zip's directory and `data.pkl`. Time and memory are bounded whatever the file
says of itself, and every damage is an AdapterFileError with one sentence. Formats: huggingface/safetensors (README,
"Format"), PyTorch `torch.serialization`.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from . import archives
from .errors import AdapterFileError
from .pickles import MAX_NAME, Storage, read_pickle
from .printable import shown, shown_path
from .spec import TensorInfo

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
# What a header of MAX_TENSORS tensors needs, so that parsing cannot cost much more memory than the text itself.
MAX_STRINGS = 6 * MAX_TENSORS
MAX_NESTED = 4 * MAX_TENSORS
MAX_COMMAS = 8 * MAX_TENSORS
UNFINISHED_SUFFIXES = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp", ".opdownload")
_WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors. `size` is the file's length in bytes; names are flat, nested ones dotted."""

    tensors: dict[str, TensorInfo]
    container: Literal["safetensors", "torch"]
    metadata: dict[str, str]
    size: int


def read_header(path: Path, *, lenient: bool = False) -> Header:
    """Read what tensors a .safetensors or zip-pickle file holds, without reading them.

    `lenient` reads past pickled objects that are not weights (nothing is ever executed); for checkpoints only.
    Raises: AdapterFileError, one sentence, for a missing, damaged, unfinished, hostile or foreign file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AdapterFileError(f"{shown_path(path.name or path)} is a folder or a device, not a file.")
        with path.open("rb") as file:
            return _read(file, path, status.st_size, lenient)
    except FileNotFoundError as error:
        raise AdapterFileError(f"There is no file {shown_path(path)}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterFileError(f"{shown_path(path.name or path)} cannot be opened: {reason}.") from error


def _read(file: BinaryIO, path: Path, size: int, lenient: bool) -> Header:
    if path.suffix.lower() in UNFINISHED_SUFFIXES:
        raise AdapterFileError(f"An unfinished download ({size} bytes so far); let it finish or download it again.")
    start = file.read(512)
    refuse_foreign(start, size)
    if start.startswith(archives.LOCAL_MAGIC):
        return _read_torch(file, size, lenient)
    if start[8:9] == b"{":
        return _read_safetensors(file, size)
    if start[:1] == b"\x80" and start[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        raise AdapterFileError(
            "A pickle in torch's old format (before 1.6), which is not read because it could run code; load it once "
            "in a recent torch you trust and save it again, best as .safetensors."
        )
    first = shown(start[:24].decode("latin-1"))
    raise AdapterFileError(f"Not a model file: it is neither safetensors nor a torch zip and starts with '{first}'.")


def refuse_foreign(start: bytes, size: int) -> None:
    """Raises: AdapterFileError when what begins with `start` is what people save in a model's place by mistake."""
    if size == 0:
        raise AdapterFileError("The file is empty (0 bytes); download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise AdapterFileError(
            f"A git-lfs pointer of {size} bytes, not the model; run `git lfs pull` or download the file itself."
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise AdapterFileError(
            f"A web page of {size} bytes saved under a model's name; download with the page's download button."
        )
    if start.startswith(b"GGUF"):
        raise AdapterFileError("A GGUF file (quantised weights), which no IP-Adapter is published as.")


# -- safetensors


def _read_safetensors(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterFileError(
            f"The safetensors header claims {length} bytes in a file of {size} (at most {MAX_HEADER_BYTES} make "
            "sense): the file is damaged, download it again."
        )
    if 8 + length > size:
        raise AdapterFileError(
            f"Truncated: the header alone needs {8 + length} bytes, the file has {size}; download it again."
        )
    document = _parse(file.read(length))
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        metadata = {}
    tensors, end = _checked(document)
    expected = 8 + length + end
    if size < expected:
        raise AdapterFileError(
            f"Truncated: the file has {size} bytes and its header describes {expected}; download it again."
        )
    if size > expected:
        raise AdapterFileError(
            f"The file has {size} bytes and its header describes only {expected}: it is damaged, download it again."
        )
    texts = {str(key): value for key, value in metadata.items() if isinstance(value, str)}
    return Header(tensors, "safetensors", texts, size)


def _parse(raw: bytes) -> dict[str, Any]:
    strings = (raw.count(b'"') - raw.count(b'\\"')) // 2
    values = raw.count(b",")
    if strings > MAX_STRINGS or values > MAX_COMMAS or raw.count(b"[") + raw.count(b"{") > MAX_NESTED:
        raise AdapterFileError(
            f"The safetensors header holds {strings} strings and {values} commas, more than any model's: refused."
        )
    try:
        document = json.loads(raw, parse_int=_parse_count, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise AdapterFileError("The safetensors header nests too deep: the file is damaged.") from error
    except ValueError as error:
        raise AdapterFileError(
            "The safetensors header is not valid JSON: the file is damaged, download it again."
        ) from error
    if not isinstance(document, dict):
        raise AdapterFileError("The safetensors header is not a table of tensors: the file is damaged.")
    if len(document) > MAX_TENSORS:
        raise AdapterFileError(f"The safetensors header lists {len(document)} tensors, more than any model: refused.")
    return document


def _parse_count(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(digits[:20])
    return int(digits)


def _refuse_constant(word: str) -> Any:
    raise ValueError(word)


def _checked(document: dict[str, Any]) -> tuple[dict[str, TensorInfo], int]:
    """Turn the header's records into TensorInfo and check that their bytes follow each other without a gap."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, record in document.items():
        if len(name) > MAX_NAME:
            raise AdapterFileError(
                f"The safetensors header has a tensor name of {len(name)} characters, more than the {MAX_NAME} that "
                "any model needs: refused."
            )
        try:
            dtype, shape, (begin, end) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise AdapterFileError(f"The record of {shown(name)} in the header is incomplete: damaged.") from error
        numbers = (begin, end, *shape)
        if not isinstance(dtype, str) or len(shape) > 16 or set(map(type, numbers)) != {int}:
            raise AdapterFileError(f"The record of {shown(name)} in the header makes no sense: the file is damaged.")
        if min(numbers) < 0 or end < begin:
            raise AdapterFileError(f"{shown(name)} lies at bytes {begin} to {end}: the file is damaged.")
        count = 1
        for extent in shape:
            count *= extent
        width = _WIDTHS.get(dtype)
        if width is not None and count * width != end - begin:
            raise AdapterFileError(
                f"{shown(name)} of shape {list(shape)} and type {dtype} needs {count * width} bytes and has "
                f"{end - begin}: the file is damaged."
            )
        tensors[name] = TensorInfo(dtype, shape)
        spans.append((begin, end, name))
    spans.sort()
    at = 0
    for begin, end, name in spans:
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
            raise AdapterFileError(f"{shown(name)} starts at byte {begin}, expected {at}: it {what}; damaged.")
        at = end
    return tensors, at


# -- torch zip


def _read_torch(file: BinaryIO, size: int, lenient: bool) -> Header:
    entries = archives.read_directory(file, size)
    if entries is None:
        raise AdapterFileError(_describe_cut(file, size))
    pickled = next((e for e in entries if e.name == "data.pkl" or e.name.endswith("/data.pkl")), None)
    if pickled is None:
        names = ", ".join(shown(entry.name) for entry in entries[:3])
        raise AdapterFileError(
            f"A zip archive of {len(entries)} files ({names}, ...), not a model file; unpack it and use what is inside."
        )
    root = pickled.name[: -len("data.pkl")]
    data = archives.read_entry(file, pickled, MAX_HEADER_BYTES)
    tensors, storages = _pickled(data, lenient)
    if not lenient:
        _check_records({entry.name: entry for entry in entries}, f"{root}data/", storages, size)
    return Header(tensors, "torch", {}, size)


def _check_records(
    records: Mapping[str, archives.Entry], folder: str, storages: Mapping[str, Storage], size: int
) -> None:
    """Check that the zip holds every storage, whole and uncompressed: tensors are read at their place in the file."""
    for key, storage in storages.items():
        record = records.get(folder + key)
        needed = storage.numel * storage.width
        if record is None:
            raise AdapterFileError(
                f"The record data/{shown(key)} should hold {needed} bytes and is missing: the file is damaged, "
                "download it again."
            )
        if record.method != 0:
            raise AdapterFileError(
                f"The zip's records are compressed (data/{shown(key)} is {record.packed} bytes of {record.size}), "
                "which torch does not write: download the original file, or load this one in torch and save it again."
            )
        if record.size < needed or record.offset + record.size > size:
            raise AdapterFileError(
                f"The record data/{shown(key)} should hold {needed} bytes and has {record.size} in a file of {size}: "
                "the file is damaged, download it again."
            )


def _pickled(data: bytes, lenient: bool) -> tuple[dict[str, TensorInfo], dict[str, Storage]]:
    try:
        tensors, storages = read_pickle(data, lenient=lenient)
    except EOFError as error:
        raise AdapterFileError("The list of tensors in the file is cut off: damaged, download it again.") from error
    return tensors, storages


def _describe_cut(file: BinaryIO, size: int) -> str:
    """Say how long a zip without its directory should be: its pickle comes first and tells every storage's size."""
    unknown = f"Truncated: the zip's directory at the end is missing, the file has {size} bytes; download it again."
    if not archives.first_name(file).endswith("data.pkl"):
        return unknown
    _, start = archives.data_start(file, 0)
    file.seek(start)
    try:
        _, storages = read_pickle(file.read(MAX_HEADER_BYTES))
    except EOFError:
        return unknown
    expected = start + sum(storage.numel * storage.width for storage in storages.values())
    return (
        f"Truncated: the zip's directory at the end is missing; the file has {size} bytes, its tensors alone reach "
        f"to byte {expected}; download it again."
    )
