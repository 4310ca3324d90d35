"""Where model files are looked for: folders in, a Listing of described files out.

`session` and the page ask a FolderIndex; nothing is scanned before they do. A file is inspected again only when its
path, length or modification time changed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .detection import inspect_file
from .errors import AdapterFileError, AdapterNotFoundError
from .fingerprints import fingerprint
from .printable import is_text, shown, shown_path
from .spec import Feature, FileReport, VisionEncoderSpec

MODEL_EXTENSIONS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
MAX_FILES = 20_000
MAX_ENTRIES = 200_000
"""Of files and folders below one searched folder: somebody who searches a whole disk shall not wait for it."""

_reports: dict[tuple[str, int, int], FileReport] = {}
_reports_lock = threading.Lock()


class FoundFile(NamedTuple):
    """One file in a searched folder. `name` is its path below that folder, with forward slashes."""

    path: Path
    folder: Path
    name: str
    report: FileReport

    @property
    def stem(self) -> str:
        """`name` without the extension, as lists show it."""
        return self.name[: -len(self.path.suffix)] if self.path.suffix else self.name


class Listing(NamedTuple):
    """What lies in the searched folders at one moment.

    `problems` are sentences about folders that could not be read; `missing` are searched folders that do not exist.
    """

    folders: tuple[Path, ...]
    files: tuple[FoundFile, ...]
    problems: tuple[str, ...] = ()
    missing: tuple[Path, ...] = ()

    def find(self, name: str) -> FoundFile:
        """Find a file by the name a person would use: below its folder or its last part, with extension or without.

        Case does not matter. A name below a folder beats a last part, and one with its extension beats one without; a
        searched folder's own name or the whole path may stand before it. Equal files count as one.
        Raises: AdapterNotFoundError when there is none; AdapterFileError, naming them, when several fit.
        """
        wanted = name.strip().replace("\\", "/").lower()
        for key in (_whole, _whole_stem, _with_folder, _full_path, _last, _last_stem):
            found = [file for file in self.files if key(file) == wanted]
            if len(found) == 1:
                return found[0]
            if found:
                return _the_only(found, name)
        raise AdapterNotFoundError(f"There is no file called '{shown(name)}' in {self.searched()}.")

    def of_kind(self, *kinds: str) -> tuple[FoundFile, ...]:
        """The files whose report has one of these kinds, supported or companion alike."""
        return tuple(file for file in self.files if file.report.kind in kinds)

    def adapters(self, base: str | None = None) -> tuple[FoundFile, ...]:
        """The supported adapters, of one base when it is given."""
        return tuple(
            file for file in self.files
            if file.report.status == "supported" and base in (None, file.report.base)
        )  # fmt: skip

    def searched(self) -> str:
        """The searched folders for a message, with what is wrong with them."""
        if not self.folders:
            return "no folder (none is set)"
        folders = ", ".join(
            shown_path(folder) + (" (which does not exist)" if folder in self.missing else "")
            for folder in self.folders
        )
        return f"{folders} ({' '.join(self.problems)})" if self.problems else folders


def _the_only(found: Sequence[FoundFile], name: str) -> FoundFile:
    """Of several files of one name, the one that all readable ones are copies of or links to.

    Raises: AdapterFileError, naming them, when they differ or none can be read.
    """
    contents: dict[str, FoundFile] = {}
    for file in found:
        # A dangling link, or a file that was deleted or locked since it was listed, leaves no question of which.
        with suppress(OSError):
            if file.path.is_file():  # opening a named pipe would wait for ever
                contents.setdefault(fingerprint(file.path), file)
    if len(contents) == 1:
        return next(iter(contents.values()))
    paths = ", ".join(shown_path(file.path) for file in found)
    what = f"{len(found)} files are called '{shown(name)}'"
    if not contents:
        raise AdapterFileError(f"{what} and none of them can be read: {paths}; refresh the list.")
    raise AdapterFileError(f"{what}: {paths}; name one with its folder.")


def _whole(file: FoundFile) -> str:
    return file.name.lower()


def _whole_stem(file: FoundFile) -> str:
    return file.stem.lower()


def _with_folder(file: FoundFile) -> str:
    return f"{file.folder.name}/{file.name}".lower()


def _full_path(file: FoundFile) -> str:
    return file.path.as_posix().lower()


def _last(file: FoundFile) -> str:
    return file.name.lower().rsplit("/", 1)[-1]


def _last_stem(file: FoundFile) -> str:
    return file.stem.lower().rsplit("/", 1)[-1]


class FolderIndex:
    """The current Listing of a set of folders, made on first use and again on `refresh`. Safe between threads."""

    def __init__(self, folders: Sequence[Path], extensions: Sequence[str] = MODEL_EXTENSIONS) -> None:
        self._folders = tuple(folders)
        self._extensions = tuple(extensions)
        self._lock = threading.Lock()
        self._listing: Listing | None = None

    def listing(self) -> Listing:
        """The listing as last scanned; scans when there is none yet."""
        with self._lock:
            if self._listing is None:
                self._listing = scan(self._folders, self._extensions)
            return self._listing

    def refresh(self, folders: Sequence[Path] | None = None) -> Listing:
        """Scan again, other folders when they are given."""
        with self._lock:
            if folders is not None:
                self._folders = tuple(folders)
            self._listing = scan(self._folders, self._extensions)
            return self._listing


def scan(folders: Sequence[Path], extensions: Sequence[str] = MODEL_EXTENSIONS) -> Listing:
    """List and describe the files with these extensions in the folders and everything below them.

    Links are followed, each folder is entered once however many ways lead to it. Never raises for what it meets.
    """
    seen: set[str] = set()
    files: list[FoundFile] = []
    problems: list[str] = []
    missing: list[Path] = []
    wanted = tuple(extension.lower() for extension in extensions)
    for folder in dict.fromkeys(folders):
        if not os.path.lexists(folder):
            missing.append(folder)
            continue
        for path in walk(folder, wanted, seen, problems):
            if len(files) >= MAX_FILES:
                problems.append(
                    f"{shown_path(folder)} holds more than {MAX_FILES} model files; the rest is not listed."
                )
                break
            report = inspect_cached(path)
            if report is not None:
                files.append(FoundFile(path, folder, path.relative_to(folder).as_posix(), report))
    files.sort(key=_whole)
    return Listing(tuple(folders), tuple(files), tuple(problems), tuple(missing))


def walk(folder: Path, extensions: Sequence[str], seen: set[str], problems: list[str]) -> Iterable[Path]:
    """Yield the files below a folder in name order; adds to `seen` (real paths) and `problems` (sentences)."""
    pending = [folder]
    left = MAX_ENTRIES
    while pending:
        here = pending.pop()
        try:
            real = os.path.realpath(here)
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name.lower())
        except OSError as error:
            problems.append(f"The folder {shown_path(here)} cannot be read: {error.strerror or error}.")
            continue
        left -= len(listed)
        if left < 0:
            problems.append(
                f"{shown_path(folder)} holds more than {MAX_ENTRIES} files and folders; the rest is not looked at."
            )
            return
        below: list[Path] = []
        for entry in listed:
            path = here / entry.name
            if _is_folder(entry):
                below.append(path)
            elif path.suffix.lower() in extensions:
                if is_text(str(path)):
                    yield path
                else:  # neither the page nor an API's answer could carry it
                    problems.append(f"{shown_path(path)} is not listed: its name is not valid UTF-8; rename it.")
        pending.extend(reversed(below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads in a circle; as a file it gets its own sentence when it is inspected.
        return False


def inspect_cached(path: Path) -> FileReport | None:
    """Inspect a file, or repeat the last report when it has not changed; None when it vanished meanwhile."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None if not path.is_symlink() else inspect_file(path)
    except OSError:
        return inspect_file(path)
    key = (str(path), status.st_size, status.st_mtime_ns)
    with _reports_lock:
        report = _reports.get(key)
    if report is None:
        report = inspect_file(path)
        with _reports_lock:
            if len(_reports) >= MAX_FILES:
                _reports.clear()
            _reports[key] = report
    return report


def find_encoders(
    listing: Listing, *, hidden_dim: int = 0, projected_dim: int = 0, feature: Feature = "pooled", name: str = ""
) -> tuple[FoundFile, ...]:
    """List the vision encoders that can feed a projector, best first.

    `pooled` needs `projected_dim` to match the tower's projection, `hidden` and `face_hidden` need `hidden_dim` to
    match its width. `name` (clip_h, clip_l_336, ...) puts towers of that name first and, since two towers can have
    one width, leaves out others that are published under another name.
    """
    fits: list[tuple[int, FoundFile]] = []
    for file in listing.of_kind("vision_encoder"):
        spec = file.report.vision_encoder
        if spec is None or not _feeds(spec, hidden_dim, projected_dim, feature):
            continue
        if name and spec.name not in (name, "custom"):
            continue
        fits.append((0 if spec.name == name else 1, file))
    return tuple(file for _, file in sorted(fits, key=lambda fit: fit[0]))


def _feeds(spec: VisionEncoderSpec, hidden_dim: int, projected_dim: int, feature: Feature) -> bool:
    if feature == "pooled":
        return projected_dim > 0 and spec.projected_dim == projected_dim
    return feature in ("hidden", "face_hidden") and hidden_dim > 0 and spec.hidden_dim == hidden_dim


__all__ = [
    "MODEL_EXTENSIONS",
    "FolderIndex",
    "FoundFile",
    "Listing",
    "find_encoders",
    "fingerprint",
    "inspect_cached",
    "scan",
    "walk",
]
