"""One version, wherever it is written."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "lib_ipadapter/webui/version.py": r'^VERSION = "([^"]+)"$',
    "scripts/ipadapter.py": r'^VERSION = "([^"]+)"$',
    "CHANGELOG.md": r"^## (\S+)",
}
"""What states the version, and how; of the changelog, its newest entry."""


def test_every_place_states_the_same_version():
    stated = {name: re.search(how, (ROOT / name).read_text(encoding="utf-8"), re.M) for name, how in PLACES.items()}
    assert all(stated.values()), f"no version in {[name for name, found in stated.items() if not found]}"
    versions = {name: found[1] for name, found in stated.items() if found}
    assert len(set(versions.values())) == 1, versions
