"""The model files on disk and the choice among them. One `Models` for the process, shared by jobs, page and API."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..library.catalogue import PACKS
from ..library.errors import (
    AdapterNotFoundError,
    EncoderNotFoundError,
    FacePackError,
    IPAdapterError,
    WrongBaseError,
)
from ..library.face_packs import FacePack, find_face_pack, list_face_packs
from ..library.files import FolderIndex, FoundFile, Listing, find_encoders, fingerprint
from ..library.spec import AdapterSpec, ControlNetSpec, FileReport, base_title
from .features import EncoderFile
from .identity_files import CONTROLNET, Fit, IdentityFile, find_identity_net
from .preferences import FACE_FEATURES, INSTANTID, PICTURE_FEATURES, knows_identity, rank, runs, serves, usable

AUTO = "auto"
FACE_PACKS: tuple[str, ...] = PACKS


@dataclass(frozen=True)
class Choice:
    """The adapter that a unit uses, and what feeds it: a vision encoder, a face pack, or both for FaceID-Plus.

    `net` is InstantID's IdentityNet, where `Models.identity_net` was asked for it.
    `fingerprint` changes when the adapter's bytes do.
    """

    name: str
    path: Path
    spec: AdapterSpec
    fingerprint: str
    encoder: EncoderFile | None = None
    pack: FacePack | None = None
    net: IdentityFile | None = None

    def require_encoder(self) -> EncoderFile:
        """The encoder of an adapter that has one."""
        assert self.encoder is not None
        return self.encoder

    def require_pack(self) -> FacePack:
        """The face pack of an adapter that has one."""
        assert self.pack is not None
        return self.pack

    @property
    def sources(self) -> str:
        """What feeds the adapter, for people: the names of its encoder and its face pack."""
        names = (self.encoder.name if self.encoder else "", self.pack.name if self.pack else "")
        return " + ".join(name for name in names if name)


class Models:
    """Knows the files in `folders()` and the packs in `face_folders()`; scans when first asked and at `refresh`."""

    def __init__(
        self, folders: Callable[[], Sequence[Path]], face_folders: Callable[[], Sequence[Path]] | None = None
    ) -> None:
        self._folders = folders
        self._face_folders = face_folders or folders
        self._lock = threading.Lock()
        self._index: FolderIndex | None = None
        self._packs: dict[str, FacePack] = {}
        self._fingerprints: dict[tuple[Path, int, int], str] = {}

    def refresh(self) -> None:
        """Scan the folders again; a file that did not change is not read again."""
        with self._lock:
            if self._index is None:
                self._index = FolderIndex(self._folders())
            self._index.refresh(self._folders())
            self._packs.clear()

    def face_pack(self, name: str) -> FacePack:
        """The face pack of this name (buffalo_l, antelopev2); once found, not looked for until the next refresh.

        Raises: FacePackError.
        """
        with self._lock:
            if name not in self._packs:
                self._packs[name] = find_face_pack(self._face_folders(), name)
            return self._packs[name]

    def adapter_names(self, base: str) -> list[tuple[str, str]]:
        """(name, label) of every adapter for `base`, of every supported one when it is empty."""
        files = [file for file in self._listing().adapters(base or None) if runs(file.report)]
        times = Counter(file.name for file in files)
        names = [file.name if times[file.name] == 1 else f"{file.folder.name}/{file.name}" for file in files]
        return [(name, f"{file.stem} ({_label(file.report)})") for name, file in zip(names, files, strict=True)]

    def choose(self, adapter: str, intent: str, bases: Sequence[str]) -> Choice:
        """The adapter called `adapter`, or the best one for `intent`, with its encoder and face pack.

        `bases` are those of the job's checkpoints, the loaded one first.

        Raises: AdapterNotFoundError, AdapterFileError, WrongBaseError, EncoderNotFoundError, FacePackError.
        """
        if adapter.strip().lower() == AUTO:
            return self._best(intent, bases)
        file = self._listing().find(adapter)
        spec = usable(file)
        if spec.base not in bases:
            fitting = ", ".join(name for base in bases for name, _ in self.adapter_names(base)) or "none is installed"
            raise WrongBaseError(
                f"The adapter {file.name} is for {base_title(spec.base)} and the checkpoint is "
                f"{' and '.join(map(base_title, bases))}. Adapters "
                f"that fit it: {fitting}."
            )
        return self._fed(file, spec)

    def identity_net(self, wanted: str, choice: Choice, fit: Fit | None = None) -> IdentityFile:
        """The IdentityNet called `wanted`, or for "auto" InstantID's own, to run beside the chosen adapter.

        `fit` judges it by the loaded UNet; None where the unit is for a checkpoint that is not loaded yet.

        Raises: IdentityNetError, WrongBaseError, AdapterNotFoundError.
        """
        gives = choice.spec.context_dim

        def pair(spec: ControlNetSpec) -> ControlNetSpec:
            if spec.context_dim != gives:
                raise WrongBaseError(
                    f"it takes tokens of {spec.context_dim} numbers and {choice.name} gives {gives}: choose both "
                    "halves of the same pair."
                )
            return spec if fit is None else fit(spec)

        file, spec = find_identity_net(self._listing(), wanted, choice.name, pair)
        return IdentityFile(file.name, file.path, spec, self._fingerprint(file.path))

    def controlnet_names(self) -> list[str]:
        """Every ControlNet that can run as IdentityNet."""
        return [file.name for file in self._listing().of_kind(CONTROLNET) if file.report.controlnet is not None]

    def knows_identity(self, adapter: str, intent: str, bases: Sequence[str]) -> bool:
        """Whether the adapter that `choose` means is fed by a face, also where what feeds it is missing."""
        try:
            if adapter.strip().lower() == AUTO:
                return any(knows_identity(file.report) for file in self._fitting(intent, bases))
            return knows_identity(self._listing().find(adapter).report)
        except IPAdapterError:
            return False

    def describe(self) -> dict[str, Any]:
        """Every file and what it is, the folders searched, and what could not be read; JSON values only."""
        self.refresh()
        listing = self._listing()
        return {
            "folders": [str(folder) for folder in listing.folders],
            "missing": [str(folder) for folder in listing.missing],
            "problems": list(listing.problems),
            "files": [_described(file) for file in listing.files],
            "face_packs": list_face_packs(self._face_folders()),
        }

    def _best(self, intent: str, bases: Sequence[str]) -> Choice:
        fitting = self._fitting(intent, bases)
        # Where there is a FaceID adapter, one that knows nothing of identity is no substitute for it.
        identity = [file for file in fitting if knows_identity(file.report)]
        failure: EncoderNotFoundError | FacePackError | None = None
        for file in identity or fitting:
            try:
                return self._fed(file, usable(file))
            except (EncoderNotFoundError, FacePackError) as error:
                failure = failure or error
        if failure is not None:
            raise failure
        what = {"face": "a face", INSTANTID: "InstantID"}.get(intent, "pictures")
        raise AdapterNotFoundError(
            f"There is no adapter for {what} and {' or '.join(map(base_title, bases))} in "
            f"{self._listing().searched()}. Put one into models/ipadapter (the README names the files) and refresh the "
            f"list.{_unreadable(self._listing())}"
        )

    def _fitting(self, intent: str, bases: Sequence[str]) -> list[FoundFile]:
        """The adapters among which auto chooses, best first."""
        return [
            file
            for base in bases
            for file in sorted(self._listing().adapters(base), key=lambda file: rank(file, intent))
            if serves(file.report, intent)
        ]

    def _fed(self, file: FoundFile, spec: AdapterSpec) -> Choice:
        """The choice of this file, with what feeds it. Raises: EncoderNotFoundError, FacePackError."""
        pack = encoder = None
        if spec.feature in FACE_FEATURES:
            pack = self.face_pack(next(name for name in spec.encoders if name in FACE_PACKS))
        if spec.feature in (*PICTURE_FEATURES, "face_hidden"):
            encoder = self._encoder(file, spec)
        return Choice(file.name, file.path, spec, self._fingerprint(file.path), encoder, pack)

    def _encoder(self, file: FoundFile, spec: AdapterSpec) -> EncoderFile:
        listing = self._listing()
        width = spec.projector.hidden_dim if spec.feature == "face_hidden" else spec.projector.input_dim
        name = next((name for name in spec.encoders if name not in FACE_PACKS), "")
        feature = "pooled" if spec.feature == "pooled" else "hidden"
        if feature == "pooled":
            found = find_encoders(listing, projected_dim=width, feature=feature, name=name)
        else:
            found = find_encoders(listing, hidden_dim=width, feature=feature, name=name)
        if spec.projector.family == "full_face":
            found = tuple(file for file in found if _positions(file) == spec.tokens)
        if not found:
            wanted = _ENCODER_TITLES.get(name, "CLIP vision")
            raise EncoderNotFoundError(
                f"{file.name} needs a {wanted} encoder with {width}-wide {feature} features, and there is none in "
                f"{listing.searched()}. Put one into models/ipadapter or models/clip_vision.{_unreadable(listing)}"
            )
        best, described = found[0], found[0].report.vision_encoder
        assert described is not None
        return EncoderFile(best.stem, best.path, described, self._fingerprint(best.path))

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
