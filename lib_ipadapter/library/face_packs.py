"""The detector and the recogniser of faces that an adapter needs, found wherever they lie; `session` and the API ask.

A pack is two files: a detector, which both packs share, and a recogniser, whose numbers an adapter was trained on.
They may lie in different folders, nested or still in their zip. A file is known by its sha256; one of another pack,
also under the asked one's name, is refused, because its faces would be read wrongly without any error. What nobody
knows is taken where its name or its folder's says that it is the one, and that is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .catalogue import PACKS, KnownFaceFile, PackName, face_file_by_sha256, face_pack_url, known_face_files
from .errors import AdapterFileError, FacePackError
from .face_models import Candidate, FaceModel, Found, list_models
from .printable import shown, shown_path

MAX_NAMED = 6
"""Of a kind of thing in one message."""

_Task = Literal["detection", "recognition"]
_ROLES = {"detection": "detector", "recognition": "recogniser"}


@dataclass(frozen=True)
class FacePack:
    """What measures faces for an adapter. `note` says where a file was taken without being known, "" otherwise."""

    name: PackName
    detector: FaceModel
    recogniser: FaceModel
    note: str

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change when a byte of either file does."""
        return hashlib.sha256(f"{self.detector.sha256} {self.recogniser.sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class _Choice:
    """One half of a pack: the file and what is to be said of it, or no file and why others were not taken."""

    model: FaceModel | None
    note: str = ""
    refusals: tuple[str, ...] = ()


def find_face_pack(folders: Sequence[Path], name: str) -> FacePack:
    """Find the pack of this name below the folders.

    Raises: FacePackError naming what was found, what is wrong with it, where was looked and what to do.
    """
    pack = _pack(name)
    found = list_models(folders)
    detector, recogniser = _choose(found, "detection", pack), _choose(found, "recognition", pack)
    if detector.model is None or recogniser.model is None:
        raise FacePackError(_missing(found, pack, detector, recogniser))
    return FacePack(pack, detector.model, recogniser.model, _notes(detector, recogniser))


def list_face_packs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe each pack as plain data: `name`, `found`, `detector`, `recogniser` (path, member, bytes, sha256, or
    None), `note` and `problem` (sentences, or ""), `licence`.
    """
    found = list_models(folders)
    described: list[dict[str, Any]] = []
    for pack in PACKS:
        detector, recogniser = _choose(found, "detection", pack), _choose(found, "recognition", pack)
        complete = detector.model is not None and recogniser.model is not None
        described.append({
            "name": pack,
            "found": complete,
            "detector": _plain(detector.model),
            "recogniser": _plain(recogniser.model),
            "note": _notes(detector, recogniser),
            "problem": "" if complete else _missing(found, pack, detector, recogniser),
            "licence": "non-commercial research",
        })  # fmt: skip
    return described


def _pack(name: str) -> PackName:
    for pack in PACKS:
        if pack == name:
            return pack
    raise FacePackError(f"There is no face pack called '{shown(name)}'; there are {' and '.join(PACKS)}.")


def _plain(model: FaceModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {"path": str(model.path), "member": model.member, "bytes": model.size, "sha256": model.sha256}


def _notes(*choices: _Choice) -> str:
    return " ".join(choice.note for choice in choices if choice.note)


# -- choosing


def _published(task: _Task, pack: PackName) -> KnownFaceFile:
    return next(known for known in known_face_files() if known.task == task and pack in known.packs)


def _choose(found: Found, task: _Task, pack: PackName) -> _Choice:
    """The published file where it is there, under whatever name; else the best that names say is it."""
    published = _published(task, pack)
    refusals: list[str] = []
    for candidate in found.candidates:
        if candidate.size == published.bytes:
            try:
                if candidate.sha256() == published.sha256:
                    return _Choice(candidate.model())
            except AdapterFileError as error:
                refusals.append(f"{candidate.where}: {error}")
    for candidate, why in _named(found, task, pack):
        try:
            taken = _take(candidate, why, published, pack)
        except AdapterFileError as error:
            refusals.append(f"{candidate.where}: {error}")
            continue
        if taken is not None:
            return taken
    return _Choice(None, refusals=tuple(dict.fromkeys(refusals)))


def _take(candidate: Candidate, why: str, published: KnownFaceFile, pack: PackName) -> _Choice | None:
    """The file with a note; None where it is for something else. Raises: AdapterFileError when it must not be used."""
    role, problem = candidate.role()
    if problem:
        raise AdapterFileError(problem)
    wanted = _ROLES[published.task]
    if role != wanted:
        if candidate.name in published.names:
            raise AdapterFileError(f"It is an ONNX model with a {wanted}'s name but not the inputs and outputs of one.")
        return None
    model = candidate.model()
    known = face_file_by_sha256(model.sha256)
    if known is None:
        damage = " It has the same length: a damaged copy is likely, download it again." if (
            model.size == published.bytes) else ""  # fmt: skip
        return _Choice(
            model,
            f"{candidate.where} is not the published {published.names[0]} (its sha256 begins with {model.sha256[:8]}); "
            f"it is taken for {pack}'s {wanted} by {why}.{damage}",
        )
    if published.task == "recognition":
        raise AdapterFileError(
            f"It is {known.origin}'s {known.names[0]} (known by its sha256), which measures faces on another scale "
            f"than {pack}'s {published.names[0]}: pictures would show somebody else."
        )
    return _Choice(model, f"Faces are found with {known.origin}'s {known.names[0]}, not with {published.names[0]}.")


def _named(found: Found, task: _Task, pack: PackName) -> Iterator[tuple[Candidate, str]]:
    """The files that may be the published one by their name, then by their folder's; every detector may be."""
    for fits in (_by_whole_name, _by_name, _by_folder):
        for candidate in found.candidates:
            why = fits(candidate, task, pack)
            if why:
                yield candidate, why
    if task == "detection":
        for candidate in found.candidates:
            known = _of_size(candidate)
            if (known is None or known.task == task) and candidate.role()[0] == "detector":
                yield candidate, "what goes in and what comes out"


def _by_whole_name(candidate: Candidate, task: _Task, pack: PackName) -> str:
    named = candidate.name in _published(task, pack).names and not _is_others(candidate, task, pack)
    return "its name" if named else ""


def _by_name(candidate: Candidate, task: _Task, pack: PackName) -> str:
    beginnings = _stems(_published(task, pack))
    named = candidate.name.startswith(beginnings) or pack in candidate.name
    return "its name" if named and not _is_others(candidate, task, pack) else ""


def _by_folder(candidate: Candidate, task: _Task, pack: PackName) -> str:
    named = any(pack in folder for folder in candidate.folders)
    return "its folder's name" if named and not _is_others(candidate, task, pack) else ""


def _is_others(candidate: Candidate, task: _Task, pack: PackName) -> bool:
    """Whether its name is another's: of a file, before folders, or of what publishes one."""
    own = _stems(_published(task, pack))
    others = [known for known in known_face_files() if known.task == task and pack not in known.packs]
    stems = tuple(stem for known in others for stem in _stems(known) if stem not in own)
    if candidate.name.startswith(stems):
        return True
    if candidate.name.startswith(own) and not any(pack in folder for folder in candidate.folders):
        words = (candidate.name, *candidate.folders)
        publishers = [origin.lower().split("-")[0] for known in others for origin in known.origin.split(" and ")]
        return any(publisher in word for publisher in publishers if publisher not in PACKS for word in words)
    return False


def _of_size(candidate: Candidate) -> KnownFaceFile | None:
    return next((known for known in known_face_files() if known.bytes == candidate.size), None)


def _stems(known: KnownFaceFile) -> tuple[str, ...]:
    return tuple(name.removesuffix(".onnx") for name in known.names)


# -- what is said where something is missing


def _missing(found: Found, pack: PackName, detector: _Choice, recogniser: _Choice) -> str:
    """What is there, what is wrong, where was looked, what to do."""
    halves = (("detection", detector), ("recognition", recogniser))
    lacking = [task for task, choice in halves if choice.model is None]
    parts = [_what_is_there(pack, detector, recogniser)]
    refusals = list(dict.fromkeys(refusal for _, choice in halves for refusal in choice.refusals))
    parts += _some(refusals, "more that cannot be used")
    parts += _some(_others(found, pack, refusals), "more models") if "recognition" in lacking else []
    parts += _some(found.problems, "more problems")
    searched = ", ".join(
        shown_path(folder) + (" (which does not exist)" if folder in found.missing else "") for folder in found.folders
    )
    parts.append(f"Looked, with everything below, in {searched or 'no folder (none is set)'}.")
    parts.append(_what_to_do(found, pack, lacking))
    return " ".join(parts)


def _what_is_there(pack: PackName, detector: _Choice, recogniser: _Choice) -> str:
    if detector.model is None and recogniser.model is None:
        return f"The face pack {pack} is not there."
    there, lacks = ("detector", "recogniser") if detector.model is not None else ("recogniser", "detector")
    where = " and ".join(choice.model.where for choice in (detector, recogniser) if choice.model is not None)
    return f"Half of the face pack {pack} is missing: its {there} is {where}, a {lacks} is not there."


def _others(found: Found, pack: PackName, refusals: Sequence[str]) -> list[str]:
    """Of the recognisers of other packs, what they are; those that were refused by name have been named."""
    told: list[str] = []
    for candidate in found.candidates:
        known = _of_size(candidate)
        recognises = known.task == "recognition" if known is not None else candidate.role()[0] == "recogniser"
        if not recognises or any(refusal.startswith(candidate.where) for refusal in refusals):
            continue
        whose = f"{known.origin}'s, by its size" if known is not None else "of no pack that is known"
        told.append(f"{candidate.where} is a recogniser, but {whose}, and does not stand in for {pack}'s.")
    return told


def _some(sentences: Sequence[str], more: str) -> list[str]:
    named = list(sentences[:MAX_NAMED])
    return named + ([f"(And {len(sentences) - MAX_NAMED} {more}.)"] if len(sentences) > MAX_NAMED else [])


def _what_to_do(found: Found, pack: PackName, lacking: Sequence[str]) -> str:
    files = " and ".join(
        f"{' or '.join(known.names)} ({known.bytes:,} bytes)"
        for known in known_face_files()
        if known.task in lacking and pack in known.packs
    )
    place = shown_path(found.folders[0]) if found.folders else "models/insightface"
    return (
        f"Put {files}, or {pack}.zip as it is, into {place}; the zip is at {face_pack_url(pack)}. These "
        "models are for non-commercial research only."
    )
