"""How the extension loads: beside Forge's namesake package, light, at UI reload and after an update; with --api-auth.

Every test starts a host in a process of its own, because module names are global.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.webui.conftest import REPOSITORY

PARTS = ("lib_ipadapter", "scripts", "javascript")
HEAVY = {"transformers", "diffusers", "insightface", "onnxruntime", "cv2", "open_clip", "timm", "sklearn", "scipy"}
BUDGET = 0.15
"""Seconds of processor time for importing all that the host's script needs."""
START = """
import json, sys
from pathlib import Path
from tests.webui.standin import StandIn
data, *extensions = map(Path, [a for a in sys.argv[1:] if not a.startswith("--")])
"""
JOBS = (
    START
    + """
from tests.e2e.client import encoded, picture
from tests.sample_models import write_sample_models
host = StandIn(extensions=extensions, data_dir=data)
write_sample_models(host.checkpoint_dir / "sd15.safetensors", data / "models" / "ipadapter")
unit = {"alwayson_scripts": {"IP-Adapter": {"args": [{"images": [encoded(picture((220, 20, 20)))]}]}}}
plain = host.txt2img(steps=1).pixels
prompted = host.txt2img(steps=1, **unit).pixels
assert prompted != plain
"""
)
BESIDE_FORGES = (
    JOBS
    + """
from modules import scripts
for _ in range(3):
    titles = {script.title(): script for script in scripts.scripts_txt2img.alwayson_scripts}
    theirs = titles["Namesake"]
    assert theirs.apply() == "theirs", theirs.apply()
    assert host.txt2img(steps=1, **unit).pixels == prompted
    assert host.txt2img(steps=1).pixels == plain
    assert not host.reports, host.reports
    host.reload_ui()
import lib_ipadapter
assert getattr(lib_ipadapter, "__file__", None) is None
for name in ("IPAdapterPlus", "resampler", "utils"):
    assert "namesake" in sys.modules["lib_ipadapter." + name].__file__
"""
)
UPDATED = (
    JOBS
    + """
from lib_ipadapter.webui.page import page_services
from lib_ipadapter.webui.version import VERSION
assert page_services().host_notice() == ""
host.reload_ui()
assert page_services().host_notice() == ""
script = extensions[0] / "scripts" / "ipadapter.py"
text = script.read_text(encoding="utf-8")
assert f'VERSION = "{VERSION}"' in text
script.write_text(text.replace(f'VERSION = "{VERSION}"', 'VERSION = "99.1"'), encoding="utf-8")
host.reload_ui()
notice = page_services().host_notice()
assert "99.1" in notice and VERSION in notice and "restart" in notice, notice
assert host.txt2img(steps=1, **unit).pixels == prompted
assert not host.reports, host.reports
"""
)
LIGHT = (
    START
    + """
import importlib, time
host = StandIn(extensions=[], data_dir=data)
before = set(sys.modules)
sys.path.insert(0, str(extensions[0]))
sys.pycache_prefix, sys.dont_write_bytecode = str(data / "compiled"), False
started = time.process_time()
for name in ("api", "settings", "version", "log", "script"):
    importlib.import_module("lib_ipadapter.webui." + name)
seconds = time.process_time() - started
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "new": sorted(new)}))
"""
)
BEHIND_A_PASSWORD = (
    START
    + """
import httpx
host = StandIn(extensions=extensions, data_dir=data, argv=["--api", "--api-auth", "ann:secret,bob:other"])
host.serve()
address = f"http://127.0.0.1:{host.server_port}/ipadapter/v1/"
def status(name, auth=None):
    return httpx.get(address + name, auth=auth, trust_env=False, timeout=60).status_code
for name in ("version", "schema", "models"):
    assert status(name) == 401, name
    assert status(name, ("ann", "other")) == 401
    assert status(name, ("nobody", "")) == 401
    assert status(name, ("ann", "secret")) == 200
    assert status(name, ("bob", "other")) == 200
assert "folders" not in httpx.get(address + "models", trust_env=False, timeout=60).text
def ask(auth=None):
    return httpx.post(address + "faces", json={"image": 7}, auth=auth, trust_env=False, timeout=60).status_code
assert (ask(), ask(("ann", "other")), ask(("ann", "secret"))) == (401, 401, 422)
"""
)

def host_process(code: str, *arguments: Path | str) -> str:
    """Run it in a new process; its output. Fails with its errors."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True,
        encoding="utf-8", check=False, timeout=400,
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(autouse=True)
def _packages(standin: object) -> None:
    """The packages that a host needs are here (the fixture skips where they are not)."""


@pytest.fixture
def namesake(tmp_path: Path) -> Path:
    """An extension with its own `lib_ipadapter`, as Forge ships one: no `__init__.py`, modules that import another."""
    folder = tmp_path / "namesake"
    package = folder / "lib_ipadapter"
    package.mkdir(parents=True)
    for name in ("resampler", "utils", "image_proj_models", "CrossAttentionPatch"):
        (package / f"{name}.py").write_text("WHOSE = 'theirs'\n", encoding="utf-8")
    (package / "IPAdapterPlus.py").write_text(
        "from lib_ipadapter import utils\nfrom lib_ipadapter.resampler import WHOSE\n"
        "from .CrossAttentionPatch import WHOSE as SAME\n\n\ndef apply():\n    assert utils.WHOSE == SAME\n"
        "    return WHOSE\n",
        encoding="utf-8",
    )
    script = folder / "scripts" / "namesake.py"
    script.parent.mkdir()
    script.write_text(
        "from lib_ipadapter.IPAdapterPlus import apply\nfrom modules import scripts\n\n\n"
        "class Namesake(scripts.Script):\n    apply = staticmethod(apply)\n\n"
        "    def title(self):\n        return 'Namesake'\n\n"
        "    def show(self, is_img2img):\n        return scripts.AlwaysVisible\n\n"
        "    def ui(self, is_img2img):\n        return []\n",
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_namesake_package_keeps_working_beside_ours(namesake: Path, tmp_path: Path, ours_first: bool) -> None:
    order = [REPOSITORY, namesake] if ours_first else [namesake, REPOSITORY]
    host_process(BESIDE_FORGES, tmp_path / "data", *order)


def test_an_update_while_the_host_runs_asks_for_a_restart(tmp_path: Path) -> None:
    installed = tmp_path / "sd-webui-ipadapter"
    for part in PARTS:
        shutil.copytree(REPOSITORY / part, installed / part, ignore=shutil.ignore_patterns("__pycache__"))
    host_process(UPDATED, tmp_path / "data", installed)


def test_loading_imports_nothing_heavy_and_is_quick(tmp_path: Path) -> None:
    seconds: list[float] = []
    # The first process writes the bytecode. Others may be busy on the machine, so the quickest of a few counts.
    while len(seconds) < 5 and not (len(seconds) > 1 and min(seconds) < BUDGET):
        output = host_process(LIGHT, tmp_path / "data", REPOSITORY)
        measured: dict[str, Any] = json.loads(output.splitlines()[-1])
        assert not HEAVY & set(measured["new"])
        seconds.append(measured["seconds"])
    assert min(seconds) < BUDGET, seconds


def test_routes_obey_the_hosts_password(tmp_path: Path) -> None:
    host_process(BEHIND_A_PASSWORD, tmp_path / "data", REPOSITORY)


@pytest.mark.parametrize(("flags", "there"), [({"api": True}, True), ({"nowebui": True}, True), ({}, False)])
def test_routes_are_there_with_the_api_alone(
    standin: object, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], there: bool
) -> None:
    from fastapi import FastAPI
    from modules import shared

    from lib_ipadapter.webui import api

    for name in ("api", "nowebui"):
        monkeypatch.setattr(shared.cmd_opts, name, flags.get(name, False))
    app = FastAPI()
    api.add_routes(None, app)
    ours = {route.path for route in app.routes if "ipadapter" in route.path}
    assert ours == ({f"/ipadapter/v1/{name}" for name in ("version", "schema", "models", "faces")} if there else set())


def test_what_the_routes_answer(standin: object) -> None:
    from lib_ipadapter.webui import api
    from lib_ipadapter.webui.version import VERSION

    version = api.version()
    assert (version["version"], version["notice"]) == (VERSION, "")
    assert set(api.models()) == {"folders", "missing", "problems", "files", "face_packs"}
    assert api.unit_schema()["maxUnits"] == 4
