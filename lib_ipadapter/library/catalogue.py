"""The one table of published files: sizes, hashes, licences, names. Data lives in `known_files.json` beside this.

`ties` settles with it what shapes cannot tell; the page shows licences and links from it. Nothing here is fetched:
hashes and sizes come from the publishers' listings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

PackName = Literal["buffalo_l", "antelopev2"]
PACKS: tuple[PackName, ...] = get_args(PackName)
_DATA = Path(__file__).with_name("known_files.json")


class ShortHash(NamedTuple):
    """A WebUI's eight-digit hash of a file (see `fingerprints.short_hash`).

    `sure` is False when it was seen under this file's name without knowing in which container.
    """

    digits: str
    sure: bool


@dataclass(frozen=True)
class KnownFile:
    """One published file. `bytes` is exact or None (then `approx_bytes` is what people read, "~44.6 MB").

    `sha256` is whole, a prefix (only that much was published), or empty. `status` is supported, unsupported or
    companion. `url` is empty when there is no direct link.
    """

    id: str
    repo: str
    path: str
    url: str
    bytes: int | None
    approx_bytes: str
    sha256: str
    container: str
    dtype: str
    status: str
    kind: str
    variant: str
    base: str
    tokens: int
    encoders: tuple[str, ...]
    licence: str
    aliases: tuple[str, ...]
    w8: tuple[ShortHash, ...]
    lora: str
    evidence: str
    notes: str

    @property
    def name(self) -> str:
        """The published file name."""
        return self.path.replace(" ", "/").rsplit("/", 1)[-1]


class KnownFaceFile(NamedTuple):
    """One published face model. `packs` names the packs that adapters need and that contain it; none for a model of
    others, which measures faces on a scale of its own; `origin` names where it is from; `task` what it does.
    """

    names: tuple[str, ...]
    bytes: int
    sha256: str
    packs: tuple[PackName, ...]
    task: str
    origin: str


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    return json.loads(_DATA.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def known_files() -> tuple[KnownFile, ...]:
    """List every published file that is recognised, in the catalogue's order."""
    return tuple(_known(row) for row in _document()["files"])


def _known(row: dict[str, Any]) -> KnownFile:
    fields = dict(row)
    fields["aliases"] = tuple(fields["aliases"])
    fields["encoders"] = tuple(fields["encoders"])
    fields["w8"] = tuple(ShortHash(entry["hash"], entry["sure"]) for entry in fields["w8"])
    return KnownFile(**fields)


@lru_cache(maxsize=1)
def known_face_files() -> tuple[KnownFaceFile, ...]:
    """List the ONNX files of the published face packs, and those that people take for them."""
    return tuple(_known_face(row) for row in _document()["onnx"])


def _known_face(row: dict[str, Any]) -> KnownFaceFile:
    origins: list[str] = list(PACKS) if row["packs"].startswith("both") else row["packs"].split(" / ")
    packs: tuple[PackName, ...] = tuple(pack for pack in PACKS if origins.count(pack))
    names = tuple(row["file"].split(" = "))
    return KnownFaceFile(names, row["bytes"], row["sha256"], packs, row["task"], " and ".join(origins))


def face_file_by_sha256(digest: str) -> KnownFaceFile | None:
    """Find the published face model with this sha256."""
    return next((known for known in known_face_files() if known.sha256 == digest), None)


@lru_cache(maxsize=1)
def face_pack_sizes() -> dict[str, int]:
    """Map each published face pack's zip name to its length in bytes."""
    return {row["name"]: row["bytes"] for row in _document()["zips"]}


def face_pack_url(pack: PackName) -> str:
    """Where the pack's publisher has its zip."""
    return next(row["urls"][0] for row in _document()["zips"] if row["name"] == f"{pack}.zip")


def by_id(known_id: str) -> KnownFile:
    """Find a known file by its id. Raises: KeyError."""
    for known in known_files():
        if known.id == known_id:
            return known
    raise KeyError(known_id)


def by_sha256(digest: str) -> KnownFile | None:
    """Find the published file with this sha256, or whose published prefix it starts with."""
    digest = digest.lower()
    for known in known_files():
        if len(known.sha256) >= 8 and digest.startswith(known.sha256):
            return known
    return None


def expected_bytes(name: str) -> int | None:
    """Say how long the published file of this name is; None when no file or several different ones have it."""
    lowered = name.lower()
    sizes = {
        known.bytes
        for known in known_files()
        if lowered == known.name.lower() or lowered in (alias.lower() for alias in known.aliases)
    }
    return sizes.pop() if len(sizes) == 1 else None
