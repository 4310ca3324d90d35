"""The LoRAs that the last job read, kept for the next one: SDXL's is 372 MB, more than the cache of results holds.

One `LoraShelf` for the process, in `Services`; `session.loras` takes from it and lays back. The hosts keep the LoRAs of
the last prompt as well.
"""

from __future__ import annotations

import threading

from ..core.lora import FaceLora


class LoraShelf:
    """LoRAs by the fingerprint of the file that they came from: those of one job, on the CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loras: dict[str, FaceLora] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return sum(lora.nbytes for lora in self._loras.values())

    def get(self, fingerprint: str) -> FaceLora | None:
        """The LoRA of that file, if it is here."""
        with self._lock:
            return self._loras.get(fingerprint)

    def replace(self, loras: dict[str, FaceLora]) -> None:
        """Keep these and no others."""
        with self._lock:
            self._loras = dict(loras)
