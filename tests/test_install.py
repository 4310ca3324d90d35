"""What the host's start adds to its packages: nothing where everything is, and never a version that is there.

install.py runs in a process of its own on packages that are made here; pip is replaced by a list of what it was asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

INSTALLER = Path(__file__).resolve().parents[1] / "install.py"

RUN = """
import importlib, json, platform, runpy, subprocess, sys
site, log, machine, system, failing, loads = json.loads(sys.argv[1])
sys.path.insert(0, site)
sys.platform = system
platform.machine = lambda: machine
def run(command, **kwargs):
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps([command, sorted(sys.modules)]) + "\\n")
    if "pip" in command:
        return subprocess.CompletedProcess(command, int(any(word in command[-1] for word in failing)))
    return subprocess.CompletedProcess(command, 0 if loads else 1, "", "Traceback\\nImportError: no VC runtime")
subprocess.run = run
runpy.run_path(sys.argv[2], run_name="__main__")
"""


class Site:
    """A folder of packages, as they look when they are installed."""

    def __init__(self, root: Path) -> None:
        self.folder, self.log = root / "site", root / "log"
        self.folder.mkdir()
        self.packages("numpy", "PIL", "safetensors", "cv2")
        self.version("numpy", "1.26.2")

    def packages(self, *names: str) -> None:
        for name in names:
            (self.folder / name).mkdir()
            (self.folder / name / "__init__.py").write_text("raise ImportError('must not be imported')\n", "utf-8")

    def version(self, package: str, version: str) -> None:
        folder = self.folder / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", "utf-8")

    def torch(self, version: str, cuda: str | None, *libraries: str, hip: str | None = None) -> None:
        self.packages("torch")
        text = f"from typing import Optional\n\n__version__ = {version!r}\ndebug = False\n"
        text += f"cuda: Optional[str] = {cuda!r}\ngit_version = 'abc'\nhip: Optional[str] = {hip!r}\n"
        (self.folder / "torch/version.py").write_text(text, "utf-8")
        (self.folder / "torch/lib").mkdir()
        for library in libraries:
            (self.folder / "torch/lib" / library).write_bytes(b"")

    def installed(
        self, machine: str = "x86_64", system: str = "linux", failing: tuple[str, ...] = (), loads: bool = True
    ) -> list[list[str]]:
        """What pip was asked to install, one list a call."""
        self.log.unlink(missing_ok=True)
        options = json.dumps([str(self.folder), str(self.log), machine, system, failing, loads])
        done = subprocess.run(
            [sys.executable, "-S", "-I", "-c", RUN, options, str(INSTALLER)], capture_output=True, text=True, check=True
        )
        self.output = done.stdout
        if not self.log.exists():
            return []
        calls = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
        assert not any("torch" in modules or "numpy" in modules for _, modules in calls)
        asked = [command for command, _ in calls if "pip" in command]
        for command in asked:
            assert {"--only-binary=:all:", "--no-deps"} <= set(command), command
            assert not {"-U", "--upgrade", "--force-reinstall"} & set(command)
        return [[word for word in command[command.index("install") + 1 :] if word[0] != "-"] for command in asked]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


CPU = "onnxruntime>=1.19"
CUDA_11, CUDA_12, CUDA_13 = (
    "onnxruntime-gpu>=1.17,<1.19",
    "onnxruntime-gpu>=1.19,<1.27",
    "onnxruntime-gpu>=1.27",
)


def test_with_everything_there_pip_is_not_even_started(site: Site) -> None:
    site.packages("onnxruntime")
    site.torch("2.6.0+cu124", "12.4")
    assert site.installed() == []
    assert site.output == ""


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"])
def test_any_onnxruntime_is_left_alone(package: str, site: Site) -> None:
    """All of them provide the module `onnxruntime`; two of them in one environment break each other."""
    site.packages("onnxruntime")
    site.version(package, "1.17.1")
    site.torch("2.6.0+cu124", "12.4")
    assert site.installed() == []


def test_a_folder_left_by_an_uninstalled_package_is_no_package(site: Site) -> None:
    (site.folder / "onnxruntime/capi").mkdir(parents=True)
    assert site.installed() == [[CPU]]


@pytest.mark.parametrize(
    ("version", "cuda", "cudnn", "numpy", "wanted"),
    [
        ("2.13.0+cpu", None, "", "1.26.2", [CPU]),
        ("2.1.2+cu121", "12.1", "8.9.2.26", "1.26.2", [CPU]),  # A1111's own
        ("2.3.1+cu121", "12.1", "8.9.2.26", "1.26.2", [CPU]),  # Forge's own
        ("2.4.0+cu121", "12.1", "9.1.0.70", "1.26.2", [CUDA_12]),
        ("2.6.0+cu124", "12.4", "9.1.0.70", "1.26.2", [CUDA_12]),
        ("2.7.1+cu128", "12.8", "9.7.1.26", "2.2.0", [CUDA_12]),
        ("2.9.0+cu130", "13.0", "9.13.0.50", "2.2.0", [CUDA_13]),
        ("2.1.2+cu118", "11.8", "8.7.0.84", "1.26.2", [CUDA_11]),
        ("2.1.2+cu118", "11.8", "8.7.0.84", "2.0.1", [CPU]),
        ("2.4.0+cu118", "11.8", "9.1.0.70", "1.26.2", [CPU]),
        ("2.99.0+cu140", "14.0", "9.99.0", "2.2.0", [CPU]),
        # What cuDNN it is, is not said: by torch's version.
        ("2.3.1+cu121", "12.1", "", "1.26.2", [CPU]),
        ("2.4.0+cu121", "12.1", "", "1.26.2", [CUDA_12]),
        ("2.10.0+cu130", "13.0", "", "2.2.0", [CUDA_13]),
    ],
)
def test_which_onnxruntime(
    version: str, cuda: str | None, cudnn: str, numpy: str, wanted: list[str], tmp_path: Path
) -> None:
    site = Site(tmp_path)
    for folder in site.folder.glob("numpy-*"):
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {numpy}\n", "utf-8")
    site.torch(version, cuda)
    if cudnn and cuda:
        site.version(f"nvidia-cudnn-cu{cuda.split('.')[0]}", cudnn)
    assert site.installed() == [wanted]


@pytest.mark.parametrize(
    ("version", "library", "wanted"),
    [
        ("2.4.0+cu121", "cudnn64_9.dll", CUDA_12),
        ("2.4.0+cu121", "cudnn64_8.dll", CPU),
        ("2.3.1+cu121", "libcudnn.so.9", CUDA_12),
        ("2.4.0+cu121", "libcudnn.so.8.9.2", CPU),
        ("2.4.0+cu121", "cudnn_ops64_8.dll", CUDA_12),
    ],
)
def test_the_library_in_torch_itself_says_which_cudnn(version: str, library: str, wanted: str, site: Site) -> None:
    site.torch(version, "12.1", library)
    assert site.installed(system="win32" if library.endswith("dll") else "linux", machine="AMD64") == [[wanted]]


@pytest.mark.parametrize(("machine", "system"), [("arm64", "darwin"), ("x86_64", "darwin"), ("aarch64", "linux")])
def test_machines_without_such_wheels_get_the_plain_one(machine: str, system: str, site: Site) -> None:
    site.torch("2.6.0+cu124", "12.4")
    site.version("nvidia-cudnn-cu12", "9.1.0.70")
    assert site.installed(machine, system) == [[CPU]]


def test_rocm_and_an_odd_torch_get_the_plain_one(site: Site) -> None:
    site.torch("2.6.0+rocm6.2", None, hip="6.2.41133")
    assert site.installed() == [[CPU]]
    (site.folder / "torch/version.py").unlink()
    assert site.installed() == [[CPU]]


def test_where_the_gpu_s_cannot_be_had_the_plain_one_is_taken(site: Site) -> None:
    site.torch("2.6.0+cu124", "12.4")
    assert site.installed(failing=("-gpu",)) == [[CUDA_12], [CPU]]
    assert site.output == ""
    assert site.installed(failing=("onnx",)) == [[CUDA_12], [CPU]]
    assert site.output.count("\n") == 1 and "could not install onnxruntime" in site.output


def test_one_that_does_not_load_is_said_to(site: Site) -> None:
    assert site.installed(loads=False) == [[CPU]]
    assert site.output == (
        "IP-Adapter: onnxruntime does not load, face prompts will not work: ImportError: no VC runtime\n"
    )


@pytest.mark.parametrize(("numpy", "wanted"), [("1.26.2", ">=4.8,<4.12"), ("2.2.0", ">=4.10,<5")])
def test_opencv_comes_only_where_there_is_none(numpy: str, wanted: str, site: Site) -> None:
    site.packages("onnxruntime")
    (site.folder / "cv2/__init__.py").unlink()
    for folder in site.folder.glob("numpy-*"):
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {numpy}\n", "utf-8")
    assert site.installed() == [[f"opencv-python-headless{wanted}"]]
    assert site.installed(failing=("opencv",)) != []
    assert "could not install opencv-python-headless" in site.output
    (site.folder / "cv2/__init__.py").touch()
    assert site.installed() == []


def test_what_image_prompts_need_comes_first_and_apart(site: Site) -> None:
    """A face prompt's package that cannot be had must not take the others with it."""
    for name in ("numpy", "PIL", "safetensors"):
        (site.folder / name / "__init__.py").unlink()
    (site.folder / "cv2/__init__.py").unlink()
    assert site.installed()[0] == ["numpy", "Pillow", "safetensors"]
    assert len(site.installed()) == 3
