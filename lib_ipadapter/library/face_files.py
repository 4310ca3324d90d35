"""Face-recognition models and packs lying among adapters, told by size, name and ONNX's first bytes.

`detection` asks before it looks for tensors: these are neither safetensors nor torch files.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from . import archives
from .catalogue import KnownFaceFile, face_pack_sizes, known_face_files
from .onnx_headers import face_role, read_onnx_header
from .streams import Span
from .verdicts import Verdict


def describe_face_file(path: Path) -> Verdict | None:
    """Recognise an ONNX model or a zip of them; None for everything else, which is then read for tensors.

    A pack is told by what is in it, whatever it is called: a torch file begins with its list of tensors. Where only a
    model's name tells, that is said: others are published as `glintr100.onnx` too.
    Raises: AdapterFileError for a damaged zip.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        with path.open("rb") as file:
            return _recognise(file, path, status.st_size)
    except (OSError, ValueError):
        return None  # whoever reads it for tensors says why it cannot be read


def _recognise(file: BinaryIO, path: Path, size: int) -> Verdict | None:
    start = file.read(64)
    if start.startswith(archives.LOCAL_MAGIC) and not archives.first_name(file).endswith("data.pkl"):
        entries = archives.read_directory(file, size)
        return None if entries is None else _pack(size, [entry.name for entry in entries])
    # ONNX is a protobuf whose first field is ir_version, a small number.
    if path.suffix.lower() == ".onnx" and len(start) > 8 and start[0] == 0x08 and start[1] < 32:
        return _onnx(path, size)
    return None


def _pack(size: int, names: list[str]) -> Verdict | None:
    models = [name.rsplit("/", 1)[-1] for name in names if name.lower().endswith(".onnx")]
    if not models:
        return None
    packs = {known.packs[0] for known in known_face_files() if len(known.packs) == 1 and set(known.names) & set(models)}
    pack = packs.pop() if len(packs) == 1 else ""
    rule = "size" if size in face_pack_sizes().values() else "name"
    return Verdict(
        "not_adapter",
        f"A zip of {len(models)} face models{f' ({pack})' if pack else ''}; put it, as it is, into models/insightface.",
        kind="face_model",
        variant=pack or "pack",
        encoder=(pack,) if pack else (),
        decided_by=rule,
    )


def _onnx(path: Path, size: int) -> Verdict:
    by_size = next((known for known in known_face_files() if known.bytes == size), None)
    by_name = next((known for known in known_face_files() if path.name.lower() in known.names), None)
    known = by_size or by_name
    if known is None:
        return _unknown(path, size)
    encoder = known.packs if len(known.packs) == 1 else ()
    return Verdict(
        "not_adapter",
        _sentence(known, sure=by_size is not None, size=size),
        kind="face_model",
        variant=known.names[0].removesuffix(".onnx"),
        encoder=encoder,
        decided_by="size" if by_size is not None else "name",
    )


def _unknown(path: Path, size: int) -> Verdict:
    """An ONNX model of no known length or name. Raises: AdapterFileError, OSError."""
    with path.open("rb") as file:
        role = face_role(read_onnx_header(Span(file, 0, size)))
    if not role:
        return Verdict("not_adapter", "An ONNX model, neither a face detector nor a face recogniser.")
    return Verdict("not_adapter", f"A face {role} that is in none of the known face packs.", kind="face_model")


def _sentence(known: KnownFaceFile, *, sure: bool, size: int) -> str:
    what = f"A face model ({known.task}) of {known.origin}"
    if sure:
        return f"{what}, known by its exact size."
    return f"{what} by its name alone: it has {size} bytes, the published file {known.bytes}."
