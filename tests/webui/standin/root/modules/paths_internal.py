"""Folders of the host."""

from __future__ import annotations

from pathlib import Path

from tests.webui.standin import launching

script_path = str(Path(__file__).resolve().parent.parent)
data_path = str(launching.current().data_dir)
models_path = str(Path(data_path) / "models")
extensions_dir = str(Path(data_path) / "extensions")
extensions_builtin_dir = str(Path(script_path) / "extensions-builtin")
cwd = data_path
