"""The model files on disk and the choice among them. One `Models` for the process, shared by jobs, page and API."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..library.errors import AdapterFileError, AdapterNotFoundError, EncoderNotFoundError, WrongBaseError
from ..library.files import FolderIndex, FoundFile, Listing, find_encoders, fingerprint
from ..library.spec import AdapterSpec, FileReport, base_title
from .features import EncoderFile

AUTO = "auto"
PICTURE_FEATURES = ("pooled", "hidden")
"""Adapters fed by CLIP alone; those fed by a face need an analysis of the face first."""

# For each intent the kinds and variants that serve it best, first to last; what is not named comes after them.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "image": ("plus", "base"),
    "style": ("plus", "base"),
    "composition": ("composition", "plus", "base"),
    "style_composition": ("plus", "base"),
}
# Made for faces: never chosen for a picture while anything else is there.
_LAST = ("plus-face", "full-face")


@dataclass(frozen=True)
class Choice:
    """The adapter and the encoder that a unit uses. `fingerprint` changes when the adapter's bytes do."""

    name: str
    path: Path
    spec: AdapterSpec
    fingerprint: str
    encoder: EncoderFile


class Models:
    """Knows the files in `folders()`; scans when first asked and at `refresh`."""

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._index: FolderIndex | None = None
        self._fingerprints: dict[tuple[Path, int, int], str] = {}

    def refresh(self) -> None:
        """Scan the folders again; a file that did not change is not read again."""
        with self._lock:
            if self._index is None:
                self._index = FolderIndex(self._folders())
            self._index.refresh(self._folders())

    def adapter_names(self, base: str) -> list[tuple[str, str]]:
        """(name, label) of every picture adapter for `base`, of every supported one when it is empty."""
        files = [file for file in self._listing().adapters(base or None) if _takes_pictures(file.report)]
        times = Counter(file.name for file in files)
        names = [file.name if times[file.name] == 1 else f"{file.folder.name}/{file.name}" for file in files]
        return [(name, f"{file.stem} ({_label(file.report)})") for name, file in zip(names, files, strict=True)]

    def choose(self, adapter: str, intent: str, bases: Sequence[str]) -> Choice:
        """The adapter called `adapter`, or the best one for `intent`, and its encoder.

        `bases` are those of the job's checkpoints, the loaded one first.

        Raises: AdapterNotFoundError, AdapterFileError, WrongBaseError, EncoderNotFoundError.
        """
        if adapter.strip().lower() == AUTO:
            return self._best(intent, bases)
        file = self._listing().find(adapter)
        spec = _usable(file)
        if spec.base not in bases:
            fitting = ", ".join(name for base in bases for name, _ in self.adapter_names(base)) or "none is installed"
            raise WrongBaseError(
                f"The adapter {file.name} is for {base_title(spec.base)} and the checkpoint is "
                f"{' and '.join(map(base_title, bases))}. Adapters "
                f"that fit it: {fitting}."
            )
        return self._with_encoder(file, spec)

    def describe(self) -> dict[str, Any]:
        """Every file and what it is, the folders searched, and what could not be read; JSON values only."""
        self.refresh()
        listing = self._listing()
        return {
            "folders": [str(folder) for folder in listing.folders],
            "missing": [str(folder) for folder in listing.missing],
            "problems": list(listing.problems),
            "files": [_described(file) for file in listing.files],
        }

    def _best(self, intent: str, bases: Sequence[str]) -> Choice:
        fitting = [
            file
            for base in bases
            for file in sorted(self._listing().adapters(base), key=lambda file: _rank(file, intent))
            if _takes_pictures(file.report)
        ]
        failure: EncoderNotFoundError | None = None
        for file in fitting:
            try:
                return self._with_encoder(file, _usable(file))
            except EncoderNotFoundError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        raise AdapterNotFoundError(
            f"There is no adapter for {' or '.join(map(base_title, bases))} in {self._listing().searched()}. Put one "
            f"into models/ipadapter (the README names the files) and refresh the list.{_unreadable(self._listing())}"
        )

    def _with_encoder(self, file: FoundFile, spec: AdapterSpec) -> Choice:
        width = spec.projector.input_dim
        listing = self._listing()
        name = spec.encoders[0] if spec.encoders else ""
        if spec.feature == "pooled":
            found = find_encoders(listing, projected_dim=width, feature="pooled", name=name)
        else:
            found = find_encoders(listing, hidden_dim=width, feature="hidden", name=name)
        if spec.projector.family == "full_face":
            found = tuple(file for file in found if _positions(file) == spec.tokens)
        if not found:
            wanted = _ENCODER_TITLES.get(name, "CLIP vision")
            raise EncoderNotFoundError(
                f"{file.name} needs a {wanted} encoder with {width}-wide {spec.feature} features, and there is none in "
                f"{listing.searched()}. Put one into models/ipadapter or models/clip_vision.{_unreadable(listing)}"
            )
        best, described = found[0], found[0].report.vision_encoder
        assert described is not None
        encoder = EncoderFile(best.stem, best.path, described, self._fingerprint(best.path))
        return Choice(file.name, file.path, spec, self._fingerprint(file.path), encoder)

    def _fingerprint(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._fingerprints.get(key)
            if known is None:
                known = self._fingerprints[key] = fingerprint(path)
        return known

    def _listing(self) -> Listing:
        with self._lock:
            if self._index is None:
                self._index = FolderIndex(self._folders())
            return self._index.listing()


_ENCODER_TITLES = {"clip_h": "CLIP ViT-H/14", "clip_g": "CLIP ViT-bigG/14", "clip_l_336": "CLIP ViT-L/14-336"}


def _unreadable(listing: Listing) -> str:
    """What is wrong with the first damaged files, which may be the very ones that are missed; empty if none are."""
    damaged = [f"{file.name}: {file.report.message}" for file in listing.files if file.report.status == "unreadable"]
    return "".join(f" {sentence}" for sentence in damaged[:3])


def _positions(file: FoundFile) -> int:
    return file.report.vision_encoder.positions if file.report.vision_encoder is not None else 0


def _takes_pictures(report: FileReport) -> bool:
    return report.adapter is not None and report.adapter.feature in PICTURE_FEATURES


def _usable(file: FoundFile) -> AdapterSpec:
    """The file's description, if it is an adapter that pictures can be put into."""
    report = file.report
    if report.adapter is None:
        raise AdapterFileError(f"{file.name} cannot be used as an adapter. {report.message}")
    if report.adapter.feature not in PICTURE_FEATURES:
        raise AdapterFileError(
            f"{file.name} is a {report.kind} adapter, which needs a face analysis that this version does not have. "
            "Choose a base, plus or full-face adapter."
        )
    return report.adapter


def _rank(file: FoundFile, intent: str) -> tuple[bool, int, str]:
    """Sort key: the intent's preferred variants first, face variants last, names for the rest."""
    report = file.report
    order = _PREFERENCE.get(intent, _PREFERENCE["image"])
    place = next((n for n, wanted in enumerate(order) if wanted in (report.variant, report.kind)), len(order))
    # The composition variant answers to the kind "plus" too, and is not what other intents mean by it.
    astray = report.variant == "composition" and intent != "composition"
    return (report.variant in _LAST or astray, place, file.name.lower())


def _label(report: FileReport) -> str:
    parts = (base_title(report.base), report.variant or report.kind, "+".join(report.encoder))
    return ", ".join(part for part in parts if part)


def _described(file: FoundFile) -> dict[str, Any]:
    report = file.report
    return {
        "name": file.name,
        "path": str(file.path),
        "status": report.status,
        "kind": report.kind,
        "variant": report.variant,
        "base": report.base,
        "tokens": report.tokens,
        "encoder": list(report.encoder),
        "decided_by": report.decided_by,
        "message": report.message,
    }
