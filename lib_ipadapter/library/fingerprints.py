"""Cheap identities of large files; `ties` and `files` read them, the caches of `session` are keyed by them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_MIB = 1 << 20
_SMALL = 2 * _MIB
_SAMPLES = 16
_BLOCK = 4096


def short_hash(path: Path) -> str:
    """The eight digits a WebUI shows in brackets: sha256 of the 64 KiB from 1 MiB on; "" for a shorter file.

    Source: AUTOMATIC1111 `modules/sd_models.py`, model_hash. It depends on the container as well as on the weights.
    """
    with path.open("rb") as file:
        file.seek(_MIB)
        block = file.read(0x10000)
    return hashlib.sha256(block).hexdigest()[:8] if block else ""


def fingerprint(path: Path) -> str:
    """A content digest (64 hex digits) that reads about half a megabyte of a file of any length.

    sha256 over the length, the first 256 KiB (the safetensors header), the last 128 KiB (a zip's directory), the
    64 KiB at 1 MiB and 16 blocks of 4 KiB spread evenly; of a file of up to 2 MiB, over all of it.
    Raises: OSError.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(size.to_bytes(8, "little"))
        spans = [(0, size)] if size <= _SMALL else _spans(size)
        for start, length in spans:
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def _spans(size: int) -> list[tuple[int, int]]:
    spread = [(size * step // _SAMPLES, _BLOCK) for step in range(1, _SAMPLES)]
    return [(0, 0x40000), (_MIB, 0x10000), *spread, (size - 0x20000, 0x20000)]
