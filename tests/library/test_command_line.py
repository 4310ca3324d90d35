"""`python -m lib_ipadapter.library inspect`, and that the library needs nothing but Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib_ipadapter.library.__main__ import main

from .synthetic import adapter_shapes, vision_shapes, write_safetensors, write_torch

ROOT = Path(__file__).parents[2]
FIELDS = ["path", "status", "kind", "variant", "base", "tokens", "encoder", "decided_by", "message"]


def run(*arguments: str, cwd: Path = ROOT, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run a bare Python: no site-packages, no environment, nothing on the path but the standard library and us."""
    # -S and -I keep even the working directory off the path, so the repository is put there by hand.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    main_call = "import runpy; runpy.run_module('lib_ipadapter.library', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-S", "-I", "-X", "utf8", "-c", start + (code or main_call), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, check=False, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "ip-adapter-plus_sd15.safetensors", adapter_shapes("plus", "SD1"))
    (tmp_path / "sub").mkdir()
    write_torch(tmp_path / "sub" / "faceid.bin", adapter_shapes("faceid", "SDXL"))
    write_safetensors(tmp_path / "sub" / "clip.safetensors", vision_shapes())
    (tmp_path / "notes.txt").write_text("not a model", encoding="utf-8")
    return tmp_path


def test_json(folder: Path) -> None:
    done = run("inspect", "--json", str(folder / "ip-adapter-plus_sd15.safetensors"), str(folder / "sub"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [row["path"] for row in rows] == [
        str(folder / "ip-adapter-plus_sd15.safetensors"),
        str(folder / "sub" / "clip.safetensors"),
        str(folder / "sub" / "faceid.bin"),
    ]
    plus, clip, faceid = rows
    message = plus.pop("message")
    assert message.startswith("IP-Adapter Plus for SD1: 16 tokens")
    del plus["path"]
    assert plus == {
        "status": "supported", "kind": "plus", "variant": "plus", "base": "SD1", "tokens": 16, "encoder": ["clip_h"],
        "decided_by": "name",
    }  # fmt: skip
    assert (clip["status"], clip["kind"], clip["tokens"]) == ("not_adapter", "vision_encoder", None)
    assert (faceid["kind"], faceid["variant"], faceid["encoder"]) == ("faceid", "", ["buffalo_l"])


def test_paths_are_printed_as_given(folder: Path) -> None:
    done = run("inspect", "--json", "./sub/faceid.bin", "sub/../sub", "nothing.bin", cwd=folder)
    assert [row["path"] for row in json.loads(done.stdout)] == [
        "./sub/faceid.bin", str(Path("sub/../sub/clip.safetensors")), str(Path("sub/../sub/faceid.bin")), "nothing.bin",
    ]  # fmt: skip
    assert done.returncode == 1


def test_text(folder: Path) -> None:
    done = run("inspect", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "supported: plus, plus, SD1, 16 tokens, clip_h, by name" in done.stdout
    assert "supported: faceid, SDXL, 4 tokens, buffalo_l, by shapes" in done.stdout
    assert "notes.txt" not in done.stdout


def test_exit_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors(folder / "flux.safetensors", {"double_blocks.0.x": ("F16", (1,))})
    assert main(["inspect", str(folder)]) == 0
    assert main(["inspect", str(folder / "notes.txt")]) == 1
    assert main(["inspect", str(folder / "missing.safetensors")]) == 1
    (folder / "sub" / "half.safetensors.part").write_bytes(b"x")
    assert main(["inspect", str(folder)]) == 1
    assert "unfinished download" in capsys.readouterr().out
    empty = folder / "empty"
    empty.mkdir()
    assert main(["inspect", "--json", str(empty)]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"No model files in {tmp_path}.\n")
    (tmp_path / "sub").mkdir()
    assert main(["inspect", str(tmp_path / "no.bin"), str(tmp_path / "sub"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("No model files in") == 2


def test_an_empty_path_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", ""]) == 1
    assert json.loads(capsys.readouterr().out)[0]["message"] == "The path is empty; name a file or a folder."


def test_a_path_is_printed_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        path = write_safetensors(tmp_path / "a\n\x1b[2J.safetensors", adapter_shapes("base", "SD1", narrow=16))
    except OSError as error:
        pytest.skip(f"no such name here: {error}")
    assert main(["inspect", str(path)]) == 0
    assert "a\\n\\x1b[2J.safetensors\n  supported" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_reader_that_stops_early_is_no_error_of_ours(arguments: list[str], folder: Path) -> None:
    for number in range(300):
        (folder / f"{number}.bin").write_bytes(b"")
    command = [sys.executable, "-m", "lib_ipadapter.library", "inspect", *arguments, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert (errors, process.returncode) == (b"", 1)


@pytest.mark.parametrize(
    "arguments", [[], ["inspect"], ["inspect", "--json"], ["inspect", "--xml", "a"], ["look", "a"]]
)
def test_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: python -m lib_ipadapter.library" in done.stderr
    assert done.stdout == ""


def test_module_runs_from_the_repository(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lib_ipadapter.library", "inspect", str(folder)],
        capture_output=True, text=True, encoding="utf-8", cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_console_cannot_print(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "モデル.safetensors", adapter_shapes("base", "SD1", narrow=16))
    command = [sys.executable, "-m", "lib_ipadapter.library", "inspect", str(tmp_path)]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"supported" in done.stdout


def test_nothing_but_the_standard_library_is_imported() -> None:
    code = (
        "import json; before = set(sys.modules); "
        "import lib_ipadapter.library.__main__, lib_ipadapter.library.checkpoints; "
        "from lib_ipadapter.library.catalogue import known_files; known_files(); "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout)) - {"lib_ipadapter"}
    assert imported <= set(sys.stdlib_module_names), imported - set(sys.stdlib_module_names)
