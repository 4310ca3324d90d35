"""The store of reference pictures: one folder of files named by their content, least recently used out first.

The page puts an upload here and sends only its id, so that arguments stay small JSON strings; pasting an old picture's
infotext finds its references here again. `webui` owns the one instance; `images.decode_reference` reads from it.
Only files that this module named are ever read, counted or deleted. Safe for several threads and processes: files
are written beside their name and moved into place, and every read is checked against the name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..library.errors import BadImageError
from .field_spec import shown

logger = logging.getLogger("ipadapter")

_ID_PATTERN = re.compile(r"sha256:([0-9a-f]{64})")
_NAME_PATTERN = re.compile(r"[0-9a-f]{64}\.(?:png|jpg|webp|gif|bmp|tif|avif|bin)")
_TEMPORARY_PREFIX = "new-"
_TEMPORARY_PATTERN = re.compile(rf"{_TEMPORARY_PREFIX}[a-z0-9_]+\.part")
# A writer that died leaves its part file; a living one needs far less than this.
_TEMPORARY_SECONDS = 3600
EXTENSIONS = ("png", "jpg", "webp", "gif", "bmp", "tif", "avif", "bin")
_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "png"),
    (b"\xff\xd8\xff", 0, "jpg"),
    (b"WEBP", 8, "webp"),
    (b"GIF8", 0, "gif"),
    (b"BM", 0, "bmp"),
    (b"II*\0", 0, "tif"),
    (b"MM\0*", 0, "tif"),
    (b"ftypavi", 4, "avif"),
)


def digest(data: bytes) -> str:
    """The id of a picture file: `sha256:` and 64 hex digits over the bytes as given, not over pixels."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def checked_id(value: object) -> str:
    """The id itself, in lower case, if it is one.

    Raises: BadImageError for anything that is not `sha256:` and 64 hex digits.
    """
    wanted = value.strip().lower() if isinstance(value, str) else ""
    if not _ID_PATTERN.fullmatch(wanted):
        raise BadImageError(f"{shown(value)} is not the id of a stored picture: 'sha256:' and 64 hex digits.")
    return wanted


def extension(data: bytes) -> str:
    """The file name extension that the first bytes call for, "bin" where they are none of the known formats'."""
    for signature, offset, name in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return name
    return "bin"


class ImageStore:
    """The reference pictures in `folder`, at most `cap_bytes` of them together.

    With `enabled` false or `cap_bytes` 0 nothing is written; what is there can still be read and cleared.
    """

    def __init__(self, folder: Path, cap_bytes: int, enabled: bool = True) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes
        self.writable = enabled and cap_bytes > 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep one picture file and return its id; see `put_all`."""
        return self.put_all((data,))[0]

    def put_all(self, items: Iterable[bytes]) -> tuple[str, ...]:
        """Keep picture files and return their ids; older ones leave, but none of these, even above the cap.

        Where the store is off, the ids are returned and nothing is kept.
        Raises: BadImageError if the folder cannot be written.
        """
        identified = [(digest(data), data) for data in items]
        files = dict(identified)
        if self.writable and files:
            with self._lock:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    for identifier, data in files.items():
                        self._write(identifier, data)
                except OSError as error:
                    raise BadImageError(
                        f"The reference picture cannot be kept in {self.folder}: {error}. Free some space, choose "
                        "another folder, or switch the store off in Settings > IP-Adapter."
                    ) from error
                self._evict(keep=set(files))
        return tuple(identifier for identifier, _ in identified)

    def get(self, identifier: str) -> bytes:
        """The file's bytes, checked against the id; the picture counts as used now.

        Raises: BadImageError for what is not an id, is not here, or was changed on disk.
        """
        wanted = checked_id(identifier)
        path = self._find(wanted)
        try:
            data = _read(path) if path is not None else None
        except OSError as error:
            raise BadImageError(f"The reference picture {path} cannot be read: {error}. Add it again.") from error
        if path is None or data is None:
            why = "the store is off" if not self.writable else "the store was cleared, or it is another machine's id"
            raise BadImageError(
                f"The reference picture {_short(wanted)} is not in {self.folder} ({why}); add the picture again."
            )
        if digest(data) != wanted:
            raise BadImageError(
                f"The reference picture {path.name} was changed on disk ({len(data)} bytes); add the picture again."
            )
        if self.writable:
            _touch(path)
        return data

    def has(self, identifier: str) -> bool:
        """Whether a picture of this id is here; false for what is not an id."""
        wanted = identifier.lower()
        return bool(_ID_PATTERN.fullmatch(wanted)) and self._find(wanted) is not None

    def size(self) -> int:
        """Bytes that the stored pictures take together."""
        return sum(size for _, size, _ in self._files())

    def clear(self) -> int:
        """Delete every stored picture and return how many went; other files in the folder stay."""
        with self._lock:
            self._remove_parts(older_than=0)
            return sum(_remove(path) for _, _, path in self._files())

    def _find(self, identifier: str) -> Path | None:
        stem = identifier.removeprefix("sha256:")
        paths = (self.folder / f"{stem}.{name}" for name in EXTENSIONS)
        return next((path for path in paths if path.is_file()), None)

    def _write(self, identifier: str, data: bytes) -> None:
        present = self._find(identifier)
        if present is not None and _read(present) == data:
            _touch(present)
            return
        target = self.folder / f"{identifier.removeprefix('sha256:')}.{extension(data)}"
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, suffix=".part", dir=self.folder)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            part.replace(target)
        except PermissionError:
            # Windows does not replace a file that another process is reading; if it is this one, all is well.
            if _read(target) != data:
                raise
        finally:
            part.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of each stored picture."""
        for path, status in _entries(self.folder):
            if _NAME_PATTERN.fullmatch(path.name):
                yield status.st_mtime, status.st_size, path

    def _evict(self, keep: set[str]) -> None:
        self._remove_parts(older_than=_TEMPORARY_SECONDS)
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.cap_bytes:
                return
            if f"sha256:{path.stem}" not in keep and _remove(path):
                total -= size

    def _remove_parts(self, older_than: float) -> None:
        for path, status in _entries(self.folder):
            if _TEMPORARY_PATTERN.fullmatch(path.name) and time.time() - status.st_mtime >= older_than:
                _remove(path)


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The plain files in a folder with their status; another process may remove files meanwhile."""
    found: list[tuple[Path, os.stat_result]] = []
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    found.append((Path(entry.path), entry.stat()))
            except FileNotFoundError:
                logger.debug("%s left the store meanwhile", entry.name)
    return found


def _read(path: Path) -> bytes | None:
    """A file's bytes, or nothing where another process has just removed it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _touch(path: Path) -> None:
    """Mark as used now; only the order of eviction hangs on it, so a read-only or vanished file is no failure."""
    try:
        os.utime(path)
    except OSError as error:
        logger.debug("cannot mark %s as used: %s", path.name, error)


def _remove(path: Path) -> bool:
    """Delete a file; false where it is in use (Windows), in which case a later call gets it."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError as error:
        logger.debug("cannot delete %s yet: %s", path.name, error)
        return False
    return True


def _short(identifier: str) -> str:
    return identifier[: len("sha256:") + 12] + "…"
