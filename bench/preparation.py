"""What a job costs before its first step: cold, with the files in memory, and from the cache; and what is held after.

    python bench/preparation.py [--quick] [--json]

Files with real keys and random weights, written to a temporary folder: SD1.5 base and plus adapters of the published
sizes, and a vision tower of ViT-H's width with fewer layers (`--layers`, 32 is the published one), so that encoding
scales with the layers and everything else is as published. Medians of several runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lib_ipadapter.session.cache import ResultCache
from lib_ipadapter.session.faces import FacePool
from lib_ipadapter.session.features import EncoderPool
from lib_ipadapter.session.models import Choice, Models
from lib_ipadapter.session.prepare import prepare_unit
from lib_ipadapter.units.images import ImageStore
from lib_ipadapter.units.unit import Unit
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.e2e.client import encoded, picture
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder

WIDTH, HEADS, MLP = 1280, 16, 5120


class BenchHost:
    """A host with a device and nothing else."""

    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def dtype(self) -> torch.dtype:
        return torch.float16 if torch.cuda.is_available() else torch.float32

    def make_room(self, size: int) -> None:
        return None

    def release(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_files(folder: Path, layers: int) -> None:
    """The two adapters and the tower, in half precision as published."""
    for kind, name in (("base", "ip-adapter_sd15.safetensors"), ("plus", "ip-adapter-plus_sd15.safetensors")):
        tensors = random_adapter_tensors(kind)  # type: ignore[arg-type]
        save_adapter(folder / name, {key: tensor.half() for key, tensor in tensors.items()})
    tower = random_vision_encoder_tensors(WIDTH, layers, HEADS, MLP)
    save_vision_encoder(folder / "vision.safetensors", tower, torch.float16)


def measure(choice: Choice, runs: int) -> dict[str, float]:
    """Milliseconds cold and cached, and bytes that the cache holds for one reference."""
    host: Any = BenchHost()
    unit = Unit(images=(encoded(picture((200, 80, 40), (640, 480))),))
    store = ImageStore(Path("unused"), 0)
    times: dict[str, list[float]] = {"cold": [], "cached": []}
    cache = ResultCache(1 << 30)
    for _ in range(runs):
        cache.clear()
        for milliseconds in times.values():
            started = time.perf_counter()
            with EncoderPool(host, cache) as pool, FacePool(host, cache) as faces:
                prepared = prepare_unit(1, unit, choice, pool=pool, faces=faces, store=store, cache=cache)
            milliseconds.append(1000 * (time.perf_counter() - started))
    held = sum(k.nbytes + v.nbytes for k, v in prepared.kv.values())
    return {f"{name} ms": statistics.median(values) for name, values in times.items()} | {"K/V bytes": held}


IMPORT = """
import logging, time, gc, sys
import torch, numpy, PIL.Image, safetensors.torch, gradio
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
gc.collect()
started = time.process_time()
import lib_ipadapter.session.job, lib_ipadapter.hosts.select, lib_ipadapter.units.schema
print(1000 * (time.process_time() - started))
"""


def import_milliseconds(runs: int) -> float:
    """Processor time that importing the extension's packages takes in a host that was started before.

    So torch, gradio, numpy and PIL are loaded and our bytecode is there, whatever the environment says of writing it.
    The collection of garbage that the imports before ours have made due is paid first: it depends on what else a host
    loads. What ours cause themselves is measured.
    """
    root = Path(__file__).resolve().parents[1]
    answers: list[float] = []
    with tempfile.TemporaryDirectory() as compiled:
        command = [sys.executable, "-c", IMPORT, compiled]
        for _ in range(runs + 1):
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
            answers.append(float(done.stdout))
    return statistics.median(answers[1:])  # the first run wrote the bytecode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tower layers and three runs")
    parser.add_argument("--layers", type=int, default=8, help="layers of the vision tower (ViT-H has 32)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    layers, runs = (2, 3) if options.quick else (options.layers, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, layers)
        models = Models(lambda: [folder])
        started = time.perf_counter()
        models.refresh()
        result: dict[str, Any] = {"scan ms": 1000 * (time.perf_counter() - started), "tower layers": layers}
        for adapter in ("ip-adapter_sd15", "ip-adapter-plus_sd15"):
            result[adapter] = measure(models.choose(adapter, "image", ["SD1"]), runs)
    result["import ms"] = import_milliseconds(min(runs, 5))
    result["torch"] = torch.__version__
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"torch {torch.__version__}, {BenchHost().device()}, tower of {layers} layers, medians of {runs} runs\n")
    print("| adapter | cold ms | cached ms | K/V bytes |\n|---|---|---|---|")
    for adapter in ("ip-adapter_sd15", "ip-adapter-plus_sd15"):
        row = SimpleNamespace(**{key.split()[0]: value for key, value in result[adapter].items()})
        print(f"| {adapter} | {row.cold:.0f} | {row.cached:.2f} | {result[adapter]['K/V bytes']:,} |")
    print(f"\nscan of three files: {result['scan ms']:.1f} ms")
    print(f"import beyond torch, gradio, numpy and PIL: {result['import ms']:.0f} ms of processor time")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
