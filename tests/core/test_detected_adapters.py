"""From a file on disk to keys and values with no description by hand: what detection says is what core can build."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from lib_ipadapter.core.adapter import load_adapter
from lib_ipadapter.core.embeds import Features, pair_tokens
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.spec import Base, Kind

from .random_adapters import Layout, random_adapter_tensors, save_adapter

CASES: list[tuple[str, Kind, Base, int, int, dict[str, int]]] = [
    ("ip-adapter_sd15", "base", "SD1", 768, 16, {}),
    ("ip-adapter-plus_sd15", "plus", "SD1", 768, 16, {}),
    ("ip-adapter-full-face_sd15", "full_face", "SD1", 768, 16, {}),
    ("ip-adapter-faceid_sd15", "faceid", "SD1", 768, 16, {"lora_rank": 4}),
    ("ip-adapter-faceid-plus_sd15", "faceid_plus", "SD1", 768, 16, {"lora_rank": 4}),
    ("ip-adapter-faceid-plusv2_sd15", "faceid_plus_v2", "SD1", 768, 16, {"lora_rank": 4}),
    ("ip-adapter-faceid-portrait_sd15", "faceid_portrait", "SD1", 768, 16, {}),
    ("ip-adapter_sdxl", "base", "SDXL", 2048, 70, {"input_dim": 1280}),
    ("ip-adapter-plus_sdxl_vit-h", "plus", "SDXL", 2048, 70, {"dim": 128}),
    ("instantid", "instantid", "SDXL", 2048, 70, {"dim": 128}),
    ("wd15_ip_adapter_plus", "plus", "SD2", 1024, 16, {"heads": 12}),
    ("kolors_plus", "plus", "Kolors", 2048, 70, {"dim": 2048, "heads": 12, "input_dim": 1024}),
]


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_detected_file_loads_and_projects(
    case: tuple[str, Kind, Base, int, int, dict[str, int]], layout: Layout, tmp_path: Path
) -> None:
    name, kind, base, context_dim, layers, sizes = case
    tensors = random_adapter_tensors(kind, context_dim, [32] * layers, depth=1, **sizes)
    suffix = ".safetensors" if layout == "flat" else ".bin"
    path = save_adapter(tmp_path / f"{name}{suffix}", tensors, layout)
    report = inspect_file(path)
    assert report.adapter is not None, report.message
    assert (report.adapter.kind, report.adapter.base) == (kind, base)

    adapter = load_adapter(report.adapter, path)
    spec = adapter.spec.projector
    vector = torch.ones(1, spec.input_dim)
    hidden = torch.ones(1, 257, spec.hidden_dim or spec.input_dim)
    tokens = adapter.project(Features(pooled=vector, hidden=hidden, face=vector))
    assert tokens.shape == (1, report.tokens, context_dim)
    kv = adapter.layer_kv(pair_tokens(tokens, None, "concat"))
    assert sorted(kv) == list(range(1, 2 * layers, 2))
    assert all(torch.isfinite(k).all() and torch.isfinite(v).all() for k, v in kv.values())
