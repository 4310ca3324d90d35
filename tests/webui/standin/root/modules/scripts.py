"""Loading the extensions' scripts, and the names an extension imports from here."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import namedtuple
from pathlib import Path

from modules import errors, extensions, paths, script_callbacks, script_loading
from modules.script_base import (
    AlwaysVisible,
    MaskBlendArgs,
    OnComponent,
    PostprocessBatchListArgs,
    PostprocessImageArgs,
    PostProcessMaskOverlayArgs,
    PostSampleArgs,
    Script,
)
from modules.script_runner import ScriptRunner, wrap_call

from tests.webui.standin import launching

__all__ = ["AlwaysVisible", "MaskBlendArgs", "OnComponent", "PostProcessMaskOverlayArgs", "PostSampleArgs",
           "PostprocessBatchListArgs", "PostprocessImageArgs", "Script", "ScriptRunner", "basedir", "list_scripts",
           "load_scripts", "reload_scripts", "wrap_call"]

ScriptFile = namedtuple("ScriptFile", ["basedir", "filename", "path"])
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])

scripts_data: list[ScriptClassData] = []
current_basedir = paths.script_path
scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
scripts_current: ScriptRunner | None = None


def basedir() -> str:
    """The folder of the extension that is being loaded; the host's own folder at any other time."""
    return current_basedir


def list_scripts(scriptdirname: str, extension: str, *, include_extensions: bool = True) -> list[ScriptFile]:
    """Files of each extension's `scriptdirname` with that ending, in extension order."""
    found = []
    for ext in extensions.active() if include_extensions else []:
        found += [ScriptFile(ext.path, path.name, str(path)) for path in ext.list_files(scriptdirname, extension)]
    return found


def list_files_with_name(filename: str) -> list[str]:
    """That file in each extension that has it."""
    files = [Path(ext.path) / filename for ext in extensions.active()]
    return [str(path) for path in files if path.is_file()]


def _register(module, scriptfile: ScriptFile) -> None:
    for value in module.__dict__.values():
        # The base class itself, imported by name, registers too on the real hosts; so it does here.
        if inspect.isclass(value) and issubclass(value, Script):
            scripts_data.append(ScriptClassData(value, scriptfile.path, scriptfile.basedir, module))


def load_scripts() -> None:
    """Execute scripts/*.py of every extension; what one raises is reported and the next is loaded.

    `sys.path` has the extension's folder first while its file is executed and is put back afterwards. Forge puts the
    folders of all extensions on it first, and leaves those there.
    """
    global current_basedir, scripts_txt2img, scripts_img2img  # noqa: PLW0603 (the host's own names)
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    importlib.import_module("networks").begin()  # the built-in Lora extension comes first
    files = list_scripts("scripts", ".py")
    if launching.is_forge():
        for file in files:
            if file.basedir not in sys.path:
                sys.path = [file.basedir, *sys.path]
    kept_path = sys.path
    for file in files:
        sys.path = [file.basedir, *kept_path]
        current_basedir = file.basedir
        try:
            _register(script_loading.load_module(file.path), file)
        except Exception:
            errors.report(f"Error loading script: {file.filename}", exc_info=True)
        finally:
            sys.path = kept_path
            current_basedir = paths.script_path
    scripts_txt2img = ScriptRunner()
    scripts_img2img = ScriptRunner()


reload_scripts = load_scripts
