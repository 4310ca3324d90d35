"""The project's commands, on a bare Python 3.10-3.13: `python3 dev.py demo | test | lint | bench | serve`.

Each command runs in an environment of its own under `.venv/<name>`, made when first needed and installed from the
pinned files in `requirements/`; pip's usual variables and configuration apply. Nothing else has to be done by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
HOSTS = ("a1111", "forge")
OLDEST, NEWEST = (3, 10), (3, 13)
INTERRUPTED = 130
"""The exit status after Ctrl+C, as shells have it."""
GRACE = 10
"""Seconds that a command has to end by itself after Ctrl+C."""


class SetupError(Exception):
    """Something that the user has to do first; shown as one line."""


def check_python() -> None:
    """Raises: SetupError for a Python that the pinned packages have no wheels for, or one without venv."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        running = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python {running} runs this, but the pinned packages need 3.10 to 3.13; "
                         "start dev.py with one of those, for example: python3.11 dev.py test")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(f"this Python has no {' and no '.join(missing)}; install the package {package} "
                         f"(Debian and Ubuntu: sudo apt install {package}) and try again")


def interpreter(name: str) -> Path:
    """The Python of an environment."""
    inside = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return ENVIRONMENTS.joinpath(name, *inside)


def fingerprint(files: Sequence[Path]) -> str:
    """What an environment was made from: the Python and the requirement files."""
    digest = hashlib.sha256(sys.version.encode("utf-8"))
    for file in files:
        digest.update(file.name.encode("utf-8") + file.read_bytes())
    return digest.hexdigest()


def environment(name: str) -> Path:
    """The environment's Python; made, or installed again when its requirement files changed.

    Raises: SetupError when it cannot be made or pip fails.
    """
    together, alone = REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}-alone.txt"
    files = [file for file in (together, alone, REQUIREMENTS / f"{name}-versions.txt") if file.is_file()]
    wanted, python = fingerprint(files), interpreter(name)
    stamp = ENVIRONMENTS / name / "made-from.sha256"
    if python.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    check_python()
    print(f"making {python.parent.parent.relative_to(ROOT)} (once; pip downloads what is not cached)", flush=True)
    shutil.rmtree(ENVIRONMENTS / name, ignore_errors=True)
    run([sys.executable, "-m", "venv", ENVIRONMENTS / name], "venv could not make the environment")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    run([*install, "-r", together], f"pip could not install {together.relative_to(ROOT)}; the lines above say why")
    if alone.is_file():
        run([*install, "--no-deps", "-r", alone],
            f"pip could not install {alone.relative_to(ROOT)}; the lines above say why")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run(command: Sequence[str | Path], failure: str) -> None:
    """Run a command in the repository. Raises: SetupError with `failure` when it does not end well."""
    if call(command) != 0:
        raise SetupError(failure)


def call(command: Sequence[str | Path]) -> int:
    """Run a command in the repository; returns its exit status.

    Raises: KeyboardInterrupt after the command has ended: the terminal's Ctrl+C reaches it too, so that pytest can say
    where it stopped, and servers and temporary folders go.
    """
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=os.environ | quiet)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        raise
    finally:
        if process.poll() is None:
            process.kill()


DEMO = f"""
import sys
try:
    from tests.demo import main
    sys.exit(main(sys.argv[1:]))
except KeyboardInterrupt:
    sys.exit({INTERRUPTED})
"""
"""What runs the demo; its imports take long enough to be interrupted."""


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    """The main job on the stand-in host: a contact sheet, numbers and times."""
    host = options.host or HOSTS[0]
    return call([environment(host), "-c", DEMO, "--host", host, "--out", options.out.resolve(), *rest])


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """The test suite in both hosts' environments, or in one; further arguments go to pytest."""
    statuses = []
    for host in [options.host] if options.host else HOSTS:
        print(f"== tests in the {host} environment", flush=True)
        statuses.append(call([environment(host), "-m", "pytest", *rest]))
    return max(statuses)


def lint(options: argparse.Namespace, rest: list[str]) -> int:
    """ruff and pyright; pyright looks at the packages of a host's environment."""
    python = environment("lint")
    checked = call([python, "-m", "ruff", "check", *rest, "."])
    typed = call([python, "-m", "pyright", "--pythonpath", environment(options.host or HOSTS[-1])])
    return max(checked, typed)


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    """The measurements, one after the other; further arguments (--quick) go to each."""
    python = environment(options.host or HOSTS[-1])
    scripts = [path for path in sorted((ROOT / "bench").glob("*.py")) if not path.name.startswith("_")]
    return max(call([python, path.relative_to(ROOT), *rest]) for path in scripts)


def serve(options: argparse.Namespace, rest: list[str]) -> int:
    """The stand-in host's page and API with this extension and small models in it, until Ctrl+C."""
    host = options.host or HOSTS[0]
    command = [environment(host), "-m", "tests.webui.standin", "--flavour", host, "--port", str(options.port),
               "--extension", ROOT, "--sample-models", "--data-dir", options.out.resolve() / f"serve-{host}", "--api",
               *rest]
    try:
        return call(command)
    except KeyboardInterrupt:
        return 0


COMMANDS = {"demo": demo, "test": test, "lint": lint, "bench": bench, "serve": serve}


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command's options, and what it passes on."""
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, function in COMMANDS.items():
        line = (function.__doc__ or "").strip()
        command = commands.add_parser(name, help=line, description=line, allow_abbrev=False)
        command.add_argument("--host", choices=HOSTS, default=None, help="whose environment and rules")
        command.add_argument("--out", type=Path, default=ROOT / "out", help="folder for what is made (default: out)")
        if name == "serve":
            command.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (default: 7860)")
    options, rest = parser.parse_known_args(argv)
    return options, [part for part in rest if part != "--"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options, rest = parse(argv)
    try:
        return COMMANDS[options.command](options, rest)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
