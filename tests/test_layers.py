"""The layers point one way: reads every import of the package and of the script that the host runs.

scripts -> webui -> session -> {hosts, encoders, core, library, units}; hosts, encoders -> core -> library's vocabulary.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "lib_ipadapter"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))

ALLOWED: dict[str, set[str]] = {
    "library": set(),
    "units": {"library.errors"},
    "core": {"library.spec", "library.errors", "library.attention_ids"},
    "encoders": {"core", "library"},
    "hosts": {"core", "library"},
    "session": {"hosts", "encoders", "core", "library", "units"},
    "webui": {"session", "hosts", "encoders", "core", "library", "units"},
}
"""What a layer may import beside itself: a layer, or one module of it."""

HOST_MODULES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio", "fastapi"}
WITH_HOST = {"hosts", "webui"}
STDLIB_ALONE = {"library", "units"}
HEAVY = {"transformers", "diffusers", "insightface", "onnxruntime", "cv2", "open_clip", "timm"}
FORBIDDEN_NAMES = {
    # Those of the namesake package on Forge:
    "IPAdapterPlus", "resampler", "image_proj_models", "CrossAttentionPatch",
    # Those that say nothing:
    "utils", "helpers", "misc", "common",
}  # fmt: skip


def name_of(path: Path) -> str:
    """`core.attach` for lib_ipadapter/core/attach.py, `core` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import: ours as `core.attach`, others with their full name."""
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if source.split(".")[0] != "lib_ipadapter":
                yield node.lineno, source
                continue
            source = source.removeprefix("lib_ipadapter").strip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".strip(".")
                yield node.lineno, "lib_ipadapter." + (inner if inner in NAMES else source)


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(path):
        if name.startswith("lib_ipadapter."):
            yield line, name.removeprefix("lib_ipadapter.")


def foreign_imports(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(path):
        if name.split(".")[0] != "lib_ipadapter":
            yield line, name


def test_the_package_is_there() -> None:
    assert {name.split(".")[0] for name in NAMES} == set(ALLOWED)
    assert sum(1 for path in MODULES for _ in own_imports(path)) > 50


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    layer = name_of(path).split(".")[0]
    for line, name in own_imports(path):
        target = name.split(".")[0]
        allowed = target == layer or target in ALLOWED[layer] or name in ALLOWED[layer]
        assert allowed, f"{path}:{line}: {layer} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not [name for name in names if name.split(".")[0] == "lib_ipadapter"], f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_outer_layers_know_the_host(path: Path) -> None:
    layer = name_of(path).split(".")[0]
    if layer in WITH_HOST:
        allowed = HOST_MODULES if layer == "webui" else HOST_MODULES - {"gradio", "fastapi"}
    else:
        allowed = set()
    for line, name in foreign_imports(path):
        root = name.split(".")[0]
        assert root not in HOST_MODULES or root in allowed, f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).split(".")[0] in STDLIB_ALONE], ids=name_of)
def test_library_and_units_need_no_packages(path: Path) -> None:
    layer = name_of(path).split(".")[0]
    allowed = {"PIL"} if layer == "units" else set()
    for line, name in foreign_imports(path):
        root = name.split(".")[0]
        assert root in sys.stdlib_module_names or root in allowed, f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.stem)
def test_heavy_packages_are_not_imported_at_the_top(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & HEAVY, f"{path}:{node.lineno}"


def test_there_are_no_cycles() -> None:
    edges = {name_of(path): {name for _, name in own_imports(path)} - {name_of(path)} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            visit(target, (*way, module))
        done.add(module)

    for module in sorted(edges):
        visit(module, ())
    assert done == set(edges)


def test_the_package_shares_its_name_with_forges() -> None:
    """Both are namespace roots: an `__init__.py` in either would hide the other."""
    assert not (PACKAGE / "__init__.py").exists()
    for folder in sorted(path.parent for path in MODULES):
        assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_are_ours_and_say_something(path: Path) -> None:
    assert not set(name_of(path).split(".")) & FORBIDDEN_NAMES
    for word in ("hack", "hijack", "guess"):
        assert word not in path.stem


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short_and_introduce_themselves(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 320, "find the second idea in it and name it"
    assert ast.get_docstring(ast.parse(text)), "the module's docstring says what lives here"


def test_scripts_import_the_outermost_layer_alone() -> None:
    names = [name for path in SCRIPTS for _, name in own_imports(path)]
    assert names
    assert {name.split(".")[0] for name in names} == {"webui"}
