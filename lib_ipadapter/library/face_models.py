"""The ONNX files below some folders, alone or in a zip, and what each is; `face_packs` chooses among them.

What a file is for is read from its header, whose it is from its sha256, of the few whose size or name makes it worth
reading them whole. Both are read again only when path, length or modification time changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from . import archives
from .errors import AdapterFileError, FacePackError
from .files import walk
from .headers import UNFINISHED_SUFFIXES, refuse_foreign
from .onnx_headers import FaceRole, face_role, read_onnx_header
from .printable import is_text, shown, shown_path
from .streams import Forward, Span, blocks, open_record

MAX_MODELS = 2000
MAX_MODEL_BYTES = 1 << 30
MAX_ZIP_BYTES = 2 << 30
"""Of models in one zip, unpacked; antelopev2.zip has 428 MB."""
_T = TypeVar("_T")
_Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class FaceModel:
    """One ONNX model: a file, or `member` of the zip at `path`. `size` is the model's own, in bytes."""

    path: Path
    member: str
    sha256: str
    size: int

    @property
    def where(self) -> str:
        """Its path for a message."""
        return _where(self.path, self.member)

    def read(self) -> bytes:
        """The whole ONNX file. Raises: FacePackError when it is gone or no longer what it was when it was found."""
        try:
            with _opened(self.path, self.member) as (stream, _):
                content = b"".join(blocks(stream))
        except AdapterFileError as error:
            raise FacePackError(f"The face model {self.where} cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise FacePackError(f"The face model {self.where} has changed since it was looked at; try again.")
        return content


@dataclass(frozen=True)
class Candidate:
    """An ONNX file below the searched `folder`, as it was listed; nothing of it has been read."""

    path: Path
    folder: Path
    member: str
    size: int
    modified: int

    @property
    def name(self) -> str:
        """The file's own name, in small letters."""
        return (self.member or self.path.name).replace("\\", "/").rsplit("/", 1)[-1].lower()

    @property
    def folders(self) -> tuple[str, ...]:
        """What it is in, in small letters: the searched folder, those below it, a zip (without .zip), those in it."""
        parts = [self.folder.name, *self.path.relative_to(self.folder).parts[:-1]]
        if self.member:
            parts += [self.path.stem, *self.member.replace("\\", "/").split("/")[:-1]]
        return tuple(part.lower() for part in parts)

    @property
    def where(self) -> str:
        """Its path for a message."""
        return _where(self.path, self.member)

    def role(self) -> tuple[FaceRole, str]:
        """What it is for, and what is wrong with it ("" for nothing)."""
        return _ROLES.get((str(self.path), self.size, self.modified, self.member), self._read_role)

    def sha256(self) -> str:
        """Its digest. Raises: AdapterFileError when it cannot be read whole or does not fit a zip's checksum."""
        return _DIGESTS.get((str(self.path), self.size, self.modified, self.member), self._read_digest)

    def model(self) -> FaceModel:
        """The model to use. Raises: as `sha256`."""
        return FaceModel(self.path, self.member, self.sha256(), self.size)

    def _read_role(self) -> tuple[FaceRole, str]:
        try:
            with _opened(self.path, self.member) as (stream, _):
                header = read_onnx_header(stream)
        except AdapterFileError as error:
            return "", str(error)
        if header.external:
            return "", "Its weights lie in another file, which no published face model's do; use the published file."
        return face_role(header), ""

    def _read_digest(self) -> str:
        digest, crc = hashlib.sha256(), 0
        with _opened(self.path, self.member) as (stream, expected):
            for block in blocks(stream):
                digest.update(block)
                crc = zlib.crc32(block, crc) if expected is not None else 0
        if expected is not None and crc != expected:
            raise AdapterFileError("It does not match the zip's checksum: the zip is damaged, download it again.")
        return digest.hexdigest()


class _Remembered(Generic[_T]):
    """What was read of files, by path, length, modification time and member; bounded, safe between threads."""

    def __init__(self) -> None:
        self._values: dict[_Key, _T] = {}
        self._lock = threading.Lock()

    def get(self, key: _Key, read: Callable[[], _T]) -> _T:
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = read()
        with self._lock:
            if len(self._values) >= MAX_MODELS:
                self._values.clear()
            self._values[key] = value
        return value


_ROLES: _Remembered[tuple[FaceRole, str]] = _Remembered()
_DIGESTS: _Remembered[str] = _Remembered()


@dataclass(frozen=True)
class Found:
    """What lies below the searched folders. `problems` are sentences; `missing` are folders that do not exist."""

    folders: tuple[Path, ...]
    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]
    missing: tuple[Path, ...]


def list_models(folders: Sequence[Path]) -> Found:
    """List the ONNX files below the folders, those in zips last. Never raises for what it meets."""
    files: list[Candidate] = []
    zipped: list[Candidate] = []
    problems: list[str] = []
    seen: set[str] = set()
    searched = tuple(dict.fromkeys(folders))
    missing = tuple(folder for folder in searched if not os.path.lexists(folder))
    for folder in searched:
        if folder in missing:
            continue
        for path in walk(folder, (".onnx", ".zip", *UNFINISHED_SUFFIXES), seen, problems):
            if len(files) + len(zipped) >= MAX_MODELS:
                problems.append(f"{shown_path(folder)} holds more than {MAX_MODELS} ONNX models; the rest is left out.")
                break
            kind = path.suffix.lower()
            try:
                if kind == ".onnx":
                    files.append(_candidate(path, folder))
                elif kind == ".zip":
                    zipped += _members(path, folder)
                elif path.stem.lower().endswith((".onnx", ".zip")):
                    problems.append(f"{shown_path(path)}: An unfinished download; let it finish or download it again.")
            except (OSError, AdapterFileError) as error:
                problems.append(f"{shown_path(path)}: {_reason(error)}")
    return Found(searched, (*files, *zipped), tuple(problems), missing)


def _candidate(path: Path, folder: Path) -> Candidate:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise AdapterFileError("It is not a file.")
    if status.st_size > MAX_MODEL_BYTES:
        raise AdapterFileError(f"It has {status.st_size} bytes, more than any face model.")
    return Candidate(path, folder, "", status.st_size, status.st_mtime_ns)


def _members(path: Path, folder: Path) -> list[Candidate]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise AdapterFileError("It is not a file.")
    with path.open("rb") as file:
        start = file.read(512)
        refuse_foreign(start, status.st_size)
        entries = archives.read_directory(file, status.st_size)
    if entries is None:
        what = "Truncated: the zip's directory at the end is missing" if start[:2] == b"PK" else "Not a zip"
        raise AdapterFileError(f"{what} ({status.st_size} bytes); download it again.")
    models = [entry for entry in entries if entry.name.lower().endswith(".onnx") and is_text(entry.name)]
    if sum(entry.size for entry in models) > MAX_ZIP_BYTES:
        raise AdapterFileError(f"It claims {len(models)} models of more than {MAX_ZIP_BYTES} bytes together: left out.")
    return [Candidate(path, folder, entry.name, entry.size, status.st_mtime_ns) for entry in models]


@contextmanager
def _opened(path: Path, member: str) -> Iterator[tuple[Forward, int | None]]:
    """A model's bytes and, in a zip, the checksum that they should have. Raises: AdapterFileError, for OSError too."""
    try:
        with path.open("rb", buffering=0) as file:
            total = file.seek(0, os.SEEK_END)
            if not member:
                yield Span(file, 0, total), None
                return
            entries = archives.read_directory(file, total) or []
            entry = next((entry for entry in entries if entry.name == member), None)
            if entry is None:
                raise AdapterFileError(f"{shown(member)} is no longer in the zip.")
            yield open_record(file, total, entry), entry.crc
    except (OSError, ValueError) as error:
        raise AdapterFileError(_reason(error)) from error


def _where(path: Path, member: str) -> str:
    return f"{shown(member)} in {shown_path(path)}" if member else shown_path(path)


def _reason(error: Exception) -> str:
    """What is wrong, as a sentence."""
    if isinstance(error, AdapterFileError):
        return str(error)
    return f"It cannot be read: {getattr(error, 'strerror', None) or error}."
