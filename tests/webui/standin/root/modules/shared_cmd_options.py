"""The command line, with the flags that extensions add in `preload.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from modules import script_loading
from modules.paths_internal import data_path, models_path

from tests.webui.standin import launching

parser = argparse.ArgumentParser(prog="standin")
parser.add_argument("--data-dir", default=data_path)
parser.add_argument("--ckpt-dir", default=None)
parser.add_argument("--port", type=int, default=None)
parser.add_argument("--api", action="store_true", default=True)
parser.add_argument("--nowebui", action="store_true")
parser.add_argument("--api-auth", type=str, default=None)
parser.add_argument("--api-log", action="store_true")
parser.add_argument("--gradio-auth", type=str, default=None)
parser.add_argument("--medvram", action="store_true")
parser.add_argument("--lowvram", action="store_true")
parser.add_argument("--no-half", action="store_true", default=True)
parser.add_argument("--use-cpu", nargs="+", default=[])
parser.add_argument("--freeze-settings", action="store_true")
parser.add_argument("--disable-extra-extensions", action="store_true")
parser.add_argument("--ui-settings-file", default=str(Path(data_path) / "config.json"))
parser.add_argument("--ui-config-file", default=str(Path(data_path) / "ui-config.json"))
parser.add_argument("--embeddings-dir", default=str(Path(data_path) / "embeddings"))
parser.add_argument("--lora-dir", default=str(Path(models_path) / "Lora"))
if launching.is_forge():
    parser.add_argument("--controlnet-dir", default=None)

script_loading.preload_extensions(launching.current().extensions, parser)
cmd_opts = parser.parse_args(launching.current().argv)
