"""Published FaceID LoRAs: which file belongs to which adapter, and where it lies. `session.loras` asks.

Most users have them from the days when a LoRA had to be typed into the prompt: in the WebUI's LoRA folder, under the
published name or one of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from .catalogue import KnownFile, by_id, known_files
from .fingerprints import short_hash

Sha256 = Callable[[Path], str]


def published_companions(kind: str, base: str) -> tuple[KnownFile, ...]:
    """The LoRAs that were published with adapters of this kind and base; none for kinds without one (Portrait)."""
    adapters = [known for known in known_files() if known.kind == kind and known.base == base and known.lora]
    return tuple(by_id(known.lora) for known in adapters)


def companion_of(path: Path) -> KnownFile | None:
    """The published LoRA of the published adapter that this file is, by length and short hash; None for any other.

    Raises: OSError.
    """
    size = path.stat().st_size
    same = [known for known in known_files() if known.lora and known.bytes == size]
    if not same:
        return None
    digits = short_hash(path)
    known = next((known for known in same if any(hash_.digits == digits for hash_ in known.w8)), None)
    return by_id(known.lora) if known is not None else None


def is_published(path: Path, known: KnownFile, sha256: Sha256) -> bool:
    """Whether a file is that published one. `sha256` is asked only where the length fits. Raises: OSError."""
    return bool(known.sha256) and path.stat().st_size == known.bytes and sha256(path).startswith(known.sha256)


def find_companion(
    adapter: Path, companions: Iterable[KnownFile], folders: Iterable[Path], sha256: Sha256
) -> Path | None:
    """Look for an adapter's LoRA below `folders`, first to last: by name, else by the published bytes.

    Names are the published one and the adapter's own with `_lora` at its end.
    """
    companions = tuple(companions)
    names = {known.name.lower() for known in companions} | {f"{adapter.stem}_lora.safetensors".lower()}
    present = [path for folder in dict.fromkeys(folders) for path in _files_below(folder)]
    for path in present:
        if path.name.lower() in names:
            return path
    for path in present:
        if any(is_published(path, known, sha256) for known in companions):
            return path
    return None


def file_sha256(path: Path) -> str:
    """The whole file's sha256. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.safetensors") if path.is_file()) if folder.is_dir() else []
