"""The extension's version, and whether the files on disk are newer than what this process imported."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"
_ROOT = Path(__file__).resolve().parents[1]


def newest_change(root: Path) -> int:
    """When a Python file below `root` was last written, in nanoseconds; 0 where there is none (any more)."""
    try:
        return max((path.stat().st_mtime_ns for path in root.rglob("*.py")), default=0)
    except OSError:  # files that vanish while an update writes others
        return 0


_imported = newest_change(_ROOT)
_installed = VERSION
_changed = False


def note_installed(version: str) -> None:
    """Called by `scripts/ipadapter.py`, which the host runs again at UI reload, with the version it was written for."""
    global _installed, _changed  # noqa: PLW0603 - what a reload brings
    _installed = version
    _changed = newest_change(_ROOT) != _imported


def installed_notice() -> str:
    """What to tell the user when the extension was updated while the WebUI ran, or an empty string."""
    if _installed == VERSION and not _changed:
        return ""
    step = f" from {VERSION} to {_installed}" if _installed != VERSION else ""
    return f"IP-Adapter was updated{step} while the WebUI ran: restart the WebUI (reloading the UI is not enough)."
