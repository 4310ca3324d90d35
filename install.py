"""Run by the host at every start, in a process of its own: adds what is missing and changes nothing that is there.

The hosts already ship all that image prompts need; this only helps where one was taken out. Face prompts need an
onnxruntime, which no host ships: any that is there is left alone. Nothing is asked of the network when everything is
present, nothing is compiled, and no requirement of a package is followed: pip cannot move anything else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path

REQUIRED = {"numpy": "numpy", "PIL": "Pillow", "safetensors": "safetensors"}
"""Import name to package name. Versions are the host's business: a package that is there is never touched."""

GPU_RUNTIMES = {
    (11, 8): "onnxruntime-gpu>=1.17,<1.19",
    (12, 9): "onnxruntime-gpu>=1.19,<1.27",
    (13, 9): "onnxruntime-gpu>=1.27",
}
"""CUDA's and cuDNN's major version to the wheels that are built for them: both must be torch's, whose libraries are
used. Sources: onnxruntime.ai, CUDA Execution Provider, Requirements; from 1.27 on, the wheels' own extras. For CUDA 12
with cuDNN 8 (torch 2.1 to 2.3) and CUDA 11 with cuDNN 9 (torch 2.4 and later) there are none.
"""

CPU_RUNTIME = "onnxruntime>=1.19"
"""The first that runs with numpy 1 and 2. To be imported and to run a model it needs numpy alone; what else it lists
(flatbuffers, packaging, protobuf, sympy) serves its tools."""

OPENCV = {1: "opencv-python-headless>=4.8,<4.12", 2: "opencv-python-headless>=4.10,<5"}
"""By numpy's major version: from 4.12 on its wheels ask for numpy 2."""

_PIP = ["-m", "pip", "install", "--only-binary=:all:", "--no-deps", "--retries=1", "--disable-pip-version-check"]


def is_there(module: str) -> bool:
    """Whether a module can be imported; a folder that an uninstalled package left behind cannot."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def missing() -> list[str]:
    """The packages that image prompts need and whose modules cannot be found."""
    return [package for module, package in REQUIRED.items() if not is_there(module)]


def install(packages: list[str]) -> int:
    """Add packages from wheels, without their own requirements, so that pip cannot move anything else."""
    return subprocess.run([sys.executable, *_PIP, *packages], check=False).returncode


def major(package: str) -> int:
    """The first number of an installed package's version, 0 when it is not installed."""
    try:
        found = re.match(r"\d+", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return 0
    return int(found[0]) if found else 0


def torch_build() -> tuple[int, int]:
    """CUDA's and cuDNN's major version that torch brings, (0, 0) without CUDA; torch itself is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return 0, 0
    folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return 0, 0
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"](\d+)", text, re.MULTILINE)
    if cuda is None:
        return 0, 0
    return int(cuda[1]), major(f"nvidia-cudnn-cu{cuda[1]}") or _bundled_cudnn(folder) or _usual_cudnn(text)


def _bundled_cudnn(folder: Path) -> int:
    """The major version of the cuDNN library that lies in torch itself (Windows, and wheels of torch's own site)."""
    for path in sorted((folder / "lib").glob("*cudnn*")):
        found = re.fullmatch(r"(?:cudnn64_(\d+)\.dll|libcudnn\.so\.(\d+).*)", path.name)
        if found:
            return int(found[1] or found[2])
    return 0


def _usual_cudnn(version: str) -> int:
    """What torch of this version is built with, by onnxruntime's table: cuDNN 9 from 2.4 on."""
    found = re.search(r"^__version__\s*=\s*['\"](\d+)\.(\d+)", version, re.MULTILINE)
    return 9 if found and (int(found[1]), int(found[2])) >= (2, 4) else 8


def runtimes() -> list[str]:
    """The onnxruntimes to try, best first: one for torch's CUDA where there is one, then the CPU's."""
    build = torch_build()
    gpu = GPU_RUNTIMES.get(build)
    has_wheels = sys.platform in ("linux", "win32") and platform.machine().lower() in ("x86_64", "amd64")
    if gpu is None or not has_wheels or (build == (11, 8) and major("numpy") != 1):  # those are built for numpy 1
        return [CPU_RUNTIME]
    return [gpu, CPU_RUNTIME]


def add_runtime() -> None:
    """Install an onnxruntime and see that it loads; say in one line when that fails."""
    if all(install([package]) != 0 for package in runtimes()):
        print("IP-Adapter: could not install onnxruntime, which face prompts need; install it by hand.")
        return
    tried = subprocess.run(
        [sys.executable, "-c", "import onnxruntime"], check=False, capture_output=True, text=True, errors="replace"
    )
    if tried.returncode != 0:
        reason = (tried.stderr or "").strip().splitlines()
        print(f"IP-Adapter: onnxruntime does not load, face prompts will not work: {reason[-1] if reason else '?'}")


def main() -> None:
    """Install what is missing; say in one line when that fails, since the host shows no more."""
    packages = missing()
    if packages and install(packages) != 0:
        print(f"IP-Adapter: could not install {', '.join(packages)}; install them by hand.")
    if not is_there("cv2") and install([OPENCV.get(major("numpy"), OPENCV[2])]) != 0:
        print("IP-Adapter: could not install opencv-python-headless, which face prompts need; install it by hand.")
    if not is_there("onnxruntime"):
        add_runtime()


if __name__ == "__main__":
    main()
