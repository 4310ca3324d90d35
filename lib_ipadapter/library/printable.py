"""Text that comes from a file or a folder, made fit for a sentence; whoever writes a message with such a name uses it.

A tensor or a file can be called anything: a name of megabytes, one with line breaks or with a terminal's commands, one
that no encoding can write.
"""

from __future__ import annotations

from pathlib import Path

_LONGEST_PATH = 4096


def shown(text: str, limit: int = 100) -> str:
    """Write `text` on one line in at most `limit` characters: others are escaped, the rest is cut off."""
    kept = text[:limit]
    if not kept.isprintable():
        kept = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept)
    if len(text) <= limit and len(kept) <= limit:
        return kept
    return kept[:limit] + "..."


def shown_path(path: str | Path) -> str:
    """Write a path on one line, whole: people need all of it to find the file."""
    return shown(str(path), _LONGEST_PATH)


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: on Linux one made of other bytes cannot, on Windows half a pair."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
