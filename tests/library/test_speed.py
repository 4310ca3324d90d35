"""Many large files: a folder as people have it is inspected in under a second, without reading what is in the files."""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path
from types import FrameType

from lib_ipadapter.library.detection import inspect_file

from .published import write_published
from .synthetic import Shapes, adapter_shapes, vision_shapes, write_safetensors

# Ten files as they lie in one folder, in the containers they are published in. FaceID SDXL is the longest to read:
# 1266 tensors in 40,529 pickle instructions.
FOLDER: tuple[tuple[str, Shapes], ...] = (
    ("faceid_sdxl.bin", adapter_shapes("faceid", "SDXL")),
    ("faceid-plusv2_sdxl.bin", adapter_shapes("faceid_plus_v2", "SDXL")),
    ("faceid_sd15.bin", adapter_shapes("faceid", "SD1")),
    ("faceid-plusv2_sd15.bin", adapter_shapes("faceid_plus", "SD1")),
    ("instantid.bin", adapter_shapes("instantid", "SDXL", dtype="F32")),
    ("plus_sdxl.safetensors", adapter_shapes("plus", "SDXL")),
    ("sdxl.safetensors", adapter_shapes("base", "SDXL")),
    ("plus-face_sd15.safetensors", adapter_shapes("plus", "SD1")),
    ("sd15.safetensors", adapter_shapes("base", "SD1")),
    ("clip_h.safetensors", vision_shapes()),
)


def test_sixty_published_files_in_under_a_second(tmp_path: Path) -> None:
    paths: list[Path] = []
    for copy in range(6):
        for name, shapes in FOLDER:
            write = write_published if name.endswith(".bin") else write_safetensors
            paths.append(write(tmp_path / f"{copy}-{name}", shapes))
    assert sum(path.stat().st_size for path in paths) > 30_000_000_000
    reports = [inspect_file(path) for path in paths]  # the table of known files is read once
    took: list[float] = []
    for _ in range(4):  # processor time, since another process may have the processor
        began = time.process_time()
        for path in paths:
            inspect_file(path)
        took.append(time.process_time() - began)
    assert [report.kind for report in reports[:5]] == [
        "faceid", "faceid_plus_v2", "faceid", "faceid_plus_v2", "instantid",
    ]  # fmt: skip
    assert min(took) < 1
    tracemalloc.start()
    inspect_file(paths[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_the_longest_list_of_tensors_is_read_in_few_calls(tmp_path: Path) -> None:
    """Calls are what reading costs; unlike time, their number is the same on every machine and under every load."""
    name, shapes = FOLDER[0]
    path = write_published(tmp_path / name, shapes)
    inspect_file(path)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        inspect_file(path)
    finally:
        sys.setprofile(before)
    assert len(shapes) == 1266
    assert calls < 10 * len(shapes)  # a call for each of a tensor's 32 instructions would be far more
