"""What the page says when the extension's files changed under a running WebUI, whose Python code stays as imported."""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    from lib_ipadapter.webui import version

    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "adapter.py").write_text("x = 1\n", encoding="utf-8")
    for name in ("_installed", "_changed"):
        monkeypatch.setattr(version, name, getattr(version, name))
    monkeypatch.setattr(version, "_ROOT", tmp_path)
    monkeypatch.setattr(version, "_imported", version.newest_change(tmp_path))
    return version


def test_nothing_is_said_while_nothing_changed(version: types.ModuleType) -> None:
    version.note_installed(version.VERSION)
    assert version.installed_notice() == ""


def test_another_version_asks_for_a_restart(version: types.ModuleType) -> None:
    version.note_installed("9.9.9")
    assert f"from {version.VERSION} to 9.9.9" in version.installed_notice()


def test_changed_files_of_the_same_version_ask_for_a_restart(version: types.ModuleType, tmp_path: Path) -> None:
    os.utime(tmp_path / "core" / "adapter.py", ns=(10**18, version._imported + 10**9))
    version.note_installed(version.VERSION)
    assert "restart the WebUI" in version.installed_notice()
