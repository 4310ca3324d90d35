"""Version of the host."""

from __future__ import annotations

from tests.webui.standin import launching


def git_tag() -> str:
    """The version that extensions show; Forge's starts with `f2`."""
    return "f2.0.1v1.10.1-standin" if launching.is_forge() else "v1.10.1"
