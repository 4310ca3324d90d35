"""The folders a user named for model files: the command-line flag and the setting. Used by every host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def extra_folders(shared: Any) -> list[Path]:
    """`--ipadapter-dir` first, then the setting's folders (one a line, or parted as in PATH)."""
    flag = getattr(shared.cmd_opts, "ipadapter_dir", None)
    setting = str(shared.opts.data.get("ipadapter_folders") or "")
    lines = [part.strip() for line in setting.splitlines() for part in line.split(os.pathsep)]
    return [Path(folder) for folder in (flag, *lines) if folder]
