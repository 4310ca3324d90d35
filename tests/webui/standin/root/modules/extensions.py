"""The extensions this host was launched with, in the order it loads them (the folder order of a real host)."""

from __future__ import annotations

from pathlib import Path

from tests.webui.standin import launching


class Extension:
    """One extension's folder."""

    def __init__(self, path: Path):
        self.path = str(path)
        self.name = path.name
        self.canonical_name = path.name.lower()
        self.enabled = True
        self.is_builtin = False
        self.remote = None
        self.branch = None
        self.commit_hash = ""
        self.version = ""

    def list_files(self, subdir: str, extension: str) -> list[Path]:
        """Files of a sub-folder with that ending, sorted."""
        folder = Path(self.path) / subdir
        return sorted(p for p in folder.glob(f"*{extension}") if p.is_file()) if folder.is_dir() else []


extensions: list[Extension] = []


def list_extensions() -> None:
    """Read the launch's folders again (their order may have been changed before a UI reload)."""
    extensions[:] = [Extension(path) for path in launching.current().extensions]


def active() -> list[Extension]:
    """The enabled extensions."""
    return [extension for extension in extensions if extension.enabled]


list_extensions()
