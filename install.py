"""Run by the host at every start, in a process of its own: adds what is missing and changes nothing that is there.

The hosts already ship all that image prompts need; this only helps where one was taken out. Nothing is asked of the
network when everything is present, and nothing is compiled.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

REQUIRED = {"numpy": "numpy", "PIL": "Pillow", "safetensors": "safetensors"}
"""Import name to package name. Versions are the host's business: a package that is there is never touched."""


def missing() -> list[str]:
    """The packages whose modules cannot be found."""
    return [package for module, package in REQUIRED.items() if importlib.util.find_spec(module) is None]


def install(packages: list[str]) -> int:
    """Add packages from wheels, without their own requirements, so that pip cannot move anything else."""
    command = [sys.executable, "-m", "pip", "install", "--only-binary=:all:", "--no-deps", *packages]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    """Install what is missing; say in one line when that fails, since the host shows no more."""
    packages = missing()
    if packages and install(packages) != 0:
        print(f"IP-Adapter: could not install {', '.join(packages)}; install them by hand.")


if __name__ == "__main__":
    main()
