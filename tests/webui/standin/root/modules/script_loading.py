"""Executing the files of extensions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modules import errors

loaded_scripts: dict[str, object] = {}


def load_module(path: str):
    """Execute one file as a module that is not entered into `sys.modules`, as the host does."""
    spec = importlib.util.spec_from_file_location(Path(path).name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded_scripts[path] = module
    return module


def preload_extensions(folders, parser) -> None:
    """Call `preload(parser)` of each extension's preload.py; what it raises is reported and swallowed."""
    for folder in folders:
        path = Path(folder) / "preload.py"
        if not path.is_file():
            continue
        try:
            module = load_module(str(path))
            if hasattr(module, "preload"):
                module.preload(parser)
        except Exception:
            errors.report(f"Error running preload() for {path}", exc_info=True)
