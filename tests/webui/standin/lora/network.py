"""One LoRA file on disk and one that is on; both flavours of the built-in Lora extension have these classes."""

from __future__ import annotations

import hashlib
from collections import namedtuple
from pathlib import Path

NetworkWeights = namedtuple("NetworkWeights", ["network_key", "sd_key", "w", "sd_module"])


class NetworkOnDisk:
    """A file in the LoRA folder; `hash` is known once it was used."""

    def __init__(self, name: str, filename: str):
        self.name = name
        self.filename = filename
        self.alias = name
        self.metadata: dict[str, str] = {}
        self.is_safetensors = filename.lower().endswith(".safetensors")
        self.hash = None
        self.shorthash = None

    def read_hash(self) -> None:
        """Digest the file, once."""
        if not self.hash:
            self.hash = hashlib.sha256(Path(self.filename).read_bytes()).hexdigest()
            self.shorthash = self.hash[:12]


class Network:
    """A LoRA that is on: its modules by the layers' names, and its strengths."""

    def __init__(self, name: str, network_on_disk: NetworkOnDisk):
        self.name = name
        self.network_on_disk = network_on_disk
        self.te_multiplier = 1.0
        self.unet_multiplier = 1.0
        self.dyn_dim = None
        self.modules: dict[str, object] = {}
        self.bundle_embeddings: dict[str, object] = {}
        self.mtime = None
        self.mentioned_name = None


def files_in(folder: str) -> list[NetworkOnDisk]:
    """The LoRA files of a folder."""
    found = sorted(Path(folder).rglob("*.safetensors")) if Path(folder).is_dir() else []
    return [NetworkOnDisk(path.stem, str(path)) for path in found]
