"""How this process's host was launched: flavour, folders, extensions and command line. Read by the host's modules."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAVOURS = ("a1111", "forge")


@dataclass
class Launch:
    """What the host's modules read while they are imported."""

    flavour: str
    data_dir: Path
    extensions: list[Path] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)


_current: list[Launch] = []


def installed_flavour() -> str:
    """The flavour that the installed gradio belongs to: 3.x is A1111's, 4.x is Forge's."""
    major = int(importlib.metadata.version("gradio").split(".")[0])
    return "a1111" if major < 4 else "forge"


def begin(launch: Launch) -> None:
    """Make `launch` this process's host and put its module roots on `sys.path`.

    Raises: RuntimeError when a host was launched before in this process.
    """
    if _current:
        raise RuntimeError("this process already runs a stand-in host; module names are global, so one per process")
    if launch.flavour not in FLAVOURS:
        raise RuntimeError(f"unknown flavour {launch.flavour!r}; choose one of {', '.join(FLAVOURS)}")
    _current.append(launch)
    roots = [HERE / "root"] + ([HERE / "root_forge"] if launch.flavour == "forge" else [])
    for root in roots:
        sys.path.insert(0, str(root))
    # The folder of the built-in Lora extension, whose modules have names of their own on every host.
    sys.path += [str(HERE / f"lora_{launch.flavour}"), str(HERE / "lora")]


def current() -> Launch:
    """This process's launch. Raises: RuntimeError before `begin`."""
    if not _current:
        raise RuntimeError("no stand-in host was launched in this process; call StandIn(...) first")
    return _current[0]


def is_forge() -> bool:
    """Whether this process imitates Forge."""
    return current().flavour == "forge"
