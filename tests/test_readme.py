"""The README and docs say what the code says, and what they tell to run works."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dev
from lib_ipadapter.library.catalogue import by_id
from tests.readme_tables import PARTS, README, START, adapters, between, encoders

ROOT = README.parent
SETTINGS = ROOT / "lib_ipadapter" / "webui" / "settings.py"


def readme() -> str:
    return README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PARTS)
def test_what_is_made_from_the_code_is_up_to_date(name: str):
    there = between(name).search(readme())
    assert there, f"the README has no place for {name}"
    assert there[2] == PARTS[name](), "run: python3 -m tests.readme_tables"


def test_the_files_that_are_listed_are_those_that_the_extension_runs():
    listed = adapters()
    assert {known.base for known in listed} == {"SD1", "SD2", "SDXL", "Kolors"}
    assert {known.kind for known in listed} == {"base", "plus", "full_face"}
    for known in [*listed, *encoders().values()]:
        assert known.url and known.licence not in ("", "u") and (known.bytes or known.approx_bytes), known.id


def test_a_newcomer_starts_with_a_pair_that_fits_together():
    for base, known_id in START.items():
        adapter = by_id(known_id)
        assert adapter in adapters() and adapter.base == base
        assert [encoders()[name].variant for name in adapter.encoders] == ["clip_h"]


def test_the_docs_name_the_setting_as_the_page_does():
    label, choice = (
        re.search(pattern, SETTINGS.read_text(encoding="utf-8"), re.M)
        for pattern in (r'DEFAULTS\[ON_FAILURE\],\s+"([^"]+)"', r'^CONTINUE = "([^"]+)"$')
    )
    assert label and choice
    api = " ".join((ROOT / "docs" / "api.md").read_text(encoding="utf-8").split())
    assert f'"{label[1]}" on *{choice[1]}*' in api
    assert f"*{choice[1]}*" in " ".join(readme().split())


@pytest.mark.parametrize("given", [{"images": ["iVBORw0KGgo="]}, {"error": "BadUnitError", "detail": "weight is 9."}])
def test_the_example_keeps_the_picture_or_says_why_there_is_none(tmp_path, monkeypatch, given):
    example = re.search(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert example
    sent = []
    answer = SimpleNamespace(json=lambda: given)
    post = SimpleNamespace(post=lambda url, json: (sent.append((url, json)), answer)[1])
    monkeypatch.setitem(sys.modules, "requests", post)
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(b"a cat")
    code = compile(example[1], str(README), "exec")
    if "detail" in given:
        with pytest.raises(SystemExit, match=r"weight is 9\."):
            exec(code, {})
    else:
        exec(code, {})
        assert Path("answer.png").read_bytes() == base64.b64decode(given["images"][0])
    (url, payload), = sent
    assert url.endswith("/sdapi/v1/txt2img")
    assert payload["alwayson_scripts"]["IP-Adapter"]["args"][0]["images"] == [base64.b64encode(b"a cat").decode()]


def test_the_commands_are_there():
    named = set(re.findall(r"python3 dev\.py (\w+)", readme() + (ROOT / "docs/developing.md").read_text("utf-8")))
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
        "import runpy, subprocess, sys; sys.modules.pop('numpy', None)\n"
        f"def run(command, **_): print(*command, file=open({str(called)!r}, 'a', encoding='utf-8'))\n"
        "subprocess.run = lambda command, **_: run(command) or subprocess.CompletedProcess(command, 0)\n"
        f"runpy.run_path({str(ROOT / 'install.py')!r}, run_name=sys.argv[1])\n"
    )
    subprocess.run([*isolated, watch, "install"], check=True)
    assert not called.exists()
    subprocess.run([*isolated, watch, "__main__"], check=True)
    command = called.read_text(encoding="utf-8").splitlines()[0].split()
    assert {"--no-deps", "--only-binary=:all:"} < set(command) and command[-3:] == ["numpy", "Pillow", "safetensors"]
