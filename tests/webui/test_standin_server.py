"""The stand-in as a server: its command line, `--api-auth`, flags of extensions."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from tests.webui.conftest import REPOSITORY, TOYS


@pytest.fixture(scope="module")
def address(standin, tmp_path_factory):
    """Address of a server in another process, with credentials."""
    data = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "tests.webui.standin", "--extension", str(TOYS / "recorder"), "--data-dir",
               str(data), "--checkpoint-dir", str(standin.checkpoint_dir), "--api-auth", "user:secret", "--toy-flag",
               "given"]
    with (data / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, encoding="utf-8")
        try:
            for line in server.stdout:
                if line.startswith("serving on "):
                    yield line.removeprefix("serving on ").strip()
                    break
            else:
                raise AssertionError((data / "log").read_text(encoding="utf-8")[-3000:])
        finally:
            server.terminate()
            server.wait(30)


def test_routes_ask_for_the_credentials(address):
    with httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
        assert client.get("/sdapi/v1/options").status_code == 401
        assert client.get("/sdapi/v1/options", auth=("user", "wrong")).status_code == 401
        assert client.get("/sdapi/v1/options", auth=("user", "secret")).status_code == 200
        payload = {"steps": 1, "width": 64, "height": 64}
        assert client.post("/sdapi/v1/txt2img", json=payload).status_code == 401
        assert client.post("/sdapi/v1/txt2img", json=payload, auth=("user", "secret")).status_code == 200


def test_flags_of_extensions_and_the_page_are_there(address):
    with httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
        flags = client.get("/sdapi/v1/cmd-flags", auth=("user", "secret")).json()
        assert flags["toy_flag"] == "given"
        assert "recorder.js" in client.get("/").text
