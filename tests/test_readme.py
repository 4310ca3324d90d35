"""The README and docs say what the code says, and what they tell to run works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dev
from lib_ipadapter.units.schema import markdown_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_the_table_of_fields_is_the_list_of_fields():
    text = README.read_text(encoding="utf-8")
    between = re.search(r"<!-- fields:begin -->\n(.*)<!-- fields:end -->", text, re.DOTALL)
    assert between, "the README has no place for the table of fields"
    assert between[1].strip() == markdown_table().strip()


def test_the_commands_are_there():
    named = set(re.findall(r"python3 dev\.py (\w+)", README.read_text("utf-8") + (ROOT / "docs/developing.md").read_text("utf-8")))
    assert named == set(dev.COMMANDS)


@pytest.mark.parametrize("command", [name for name in dev.COMMANDS if name != "serve"])
def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, command):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(dev.COMMANDS, command, interrupted)
    assert dev.main([command]) == 130


def test_importing_the_installer_installs_nothing_and_running_it_does(tmp_path):
    """The host runs it as a script; whatever else looks at it must not start pip."""
    called = tmp_path / "called"
    isolated = [sys.executable, "-S", "-I", "-c"]
    watch = (
        "import pathlib, runpy, subprocess, sys; sys.modules.pop('numpy', None)\n"
        f"def run(command, **_): pathlib.Path({str(called)!r}).write_text(' '.join(map(str, command)))\n"
        "subprocess.run = lambda command, **_: run(command) or subprocess.CompletedProcess(command, 0)\n"
        f"runpy.run_path({str(ROOT / 'install.py')!r}, run_name=sys.argv[1])\n"
    )
    subprocess.run([*isolated, watch, "install"], check=True)
    assert not called.exists()
    subprocess.run([*isolated, watch, "__main__"], check=True)
    command = called.read_text(encoding="utf-8").split()
    assert {"--no-deps", "--only-binary=:all:"} < set(command) and command[-3:] == ["numpy", "Pillow", "safetensors"]
