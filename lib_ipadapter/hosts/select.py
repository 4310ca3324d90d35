"""Which WebUI is this? Asked once, when the script loads."""

from __future__ import annotations

import importlib

from .a1111 import A1111Host
from .base import Host
from .forge import ForgeHost


def current_host() -> Host:
    """The host this process runs: the Forge family ships a package `modules_forge`, A1111 does not."""
    try:
        importlib.import_module("modules_forge")
    except ModuleNotFoundError:
        return A1111Host()
    return ForgeHost()
