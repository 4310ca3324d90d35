"""The LoRA out of a FaceID file and out of its companion: names, storages, and when two are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.lora import FaceLora, lora_modules, read_adapter_lora, read_companion_lora, same_shapes
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.spec import AdapterSpec, Base
from tests.core.random_adapters import SD1_WIDTHS, SDXL_WIDTHS, Layout, save_adapter
from tests.core.random_loras import RANK, companion_tensors, faceid_tensors, save_companion

NARROW = tuple(width // 40 for width in SD1_WIDTHS)
LAYOUTS: tuple[Layout, ...] = ("flat", "nested-bin")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return faceid_tensors(768, NARROW)


def saved(folder: Path, tensors: dict[str, Tensor], layout: Layout = "flat") -> tuple[AdapterSpec, Path]:
    path = save_adapter(folder / f"ip-adapter-faceid_sd15.{'bin' if layout == 'nested-bin' else 'safetensors'}",
                        tensors, layout)  # fmt: skip
    spec = inspect_file(path).adapter
    assert spec is not None
    return spec, path


def companion(folder: Path, tensors: dict[str, Tensor]) -> FaceLora:
    return read_companion_lora(save_companion(folder / "companion.safetensors", tensors), tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lora_inside_a_faceid_file(tmp_path: Path, tensors: dict[str, Tensor], layout: Layout) -> None:
    spec, path = saved(tmp_path, tensors, layout)
    assert spec.lora_rank == RANK
    lora = read_adapter_lora(spec, path)
    expected = companion_tensors(tensors, "SD1")
    assert lora.weights.keys() == expected.keys()
    assert len(lora.weights) == 256
    for name, tensor in lora.weights.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == torch.float16
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    path.write_bytes(b"")
    assert torch.equal(next(iter(lora.weights.values())), expected[next(iter(lora.weights))])


@pytest.mark.parametrize(("base", "widths", "context", "count"), [("SD1", NARROW, 768, 32),
                                                                  ("SD2", NARROW, 1024, 32),
                                                                  ("SDXL", (8,) * 70, 2048, 140)])  # fmt: skip
def test_ids_count_attn1_and_attn2_of_every_block(base: Base, widths: tuple[int, ...], context: int,
                                                  count: int, tmp_path: Path) -> None:  # fmt: skip
    """By structure, whatever the widths: the narrow nets of the tests and the published files alike."""
    modules = lora_modules(base)
    assert sorted(modules) == list(range(count))
    assert all(name.endswith(f"_attn{1 + key_id % 2}") for key_id, name in modules.items())
    assert len(set(modules.values())) == count
    spec, path = saved(tmp_path, faceid_tensors(context, widths, rank=1))
    assert spec.base == base
    assert len(read_adapter_lora(spec, path).weights) == 8 * count


def test_sdxls_published_shapes_fit_its_names() -> None:
    """A layer of the first level is 640 wide, one of the second 1280, and the third is the middle's."""
    modules = lora_modules("SDXL")
    for key_id, width in zip(range(1, 140, 2), SDXL_WIDTHS, strict=True):
        level = "down_blocks_1" in modules[key_id] or "up_blocks_1" in modules[key_id]
        assert width == (640 if level else 1280)


def test_the_companion_holds_the_same_lora(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    inside = read_adapter_lora(*saved(tmp_path, tensors))
    plain = companion_tensors(tensors, "SD1")
    assert companion(tmp_path, plain).digest == inside.digest
    assert companion(tmp_path, companion_tensors(tensors, "SD1", alpha=float(RANK))).digest == inside.digest
    wide = {name: tensor.float() for name, tensor in plain.items()}
    assert companion(tmp_path, wide).digest == inside.digest
    assert companion(tmp_path, wide).weights[next(iter(wide))].dtype == torch.float32


def test_another_lora_is_another(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    inside = read_adapter_lora(*saved(tmp_path, tensors))
    plain = companion_tensors(tensors, "SD1")
    assert companion(tmp_path, companion_tensors(tensors, "SD1", alpha=RANK / 2)).digest != inside.digest
    name = sorted(plain)[-1]
    changed = plain | {name: plain[name].clone()}
    changed[name].view(-1)[-1] += 0.01
    assert companion(tmp_path, changed).digest != inside.digest
    first, second = (f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{x}.lora_down.weight"
                     for x in "qk")  # fmt: skip
    assert companion(tmp_path, plain | {first: plain[second], second: plain[first]}).digest != inside.digest


def test_shapes_tell_which_files_are_worth_reading(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    inside = read_adapter_lora(*saved(tmp_path, tensors))
    shapes = {name: tuple(t.shape) for name, t in companion_tensors(tensors, "SD1", alpha=1.0).items()}
    assert same_shapes(inside, shapes)
    name = next(name for name in shapes if not name.endswith("alpha"))
    assert not same_shapes(inside, shapes | {name: (1, 1)})
    assert not same_shapes(inside, {key: shape for key, shape in shapes.items() if key != name})
    assert not same_shapes(inside, shapes | {"lora_te_text_model.lora_down.weight": (4, 4)})


def test_the_early_upload_is_refused(tmp_path: Path) -> None:
    names = [f"down_blocks_1_attentions_0_transformer_blocks_0_attn1_{x}_proj.lora_{way}.weight"
             for x in ("q", "k", "v", "out") for way in ("down", "up")]  # fmt: skip
    with pytest.raises(AdapterFileError, match=r"early, broken upload.*8 of its 8 tensors.*lora_unet_"):
        companion(tmp_path, {name: torch.zeros(2, 2) for name in names})


def test_files_that_are_something_else(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    plain = companion_tensors(tensors, "SD1")
    with pytest.raises(AdapterFileError, match=r"1 of its 257 tensors are something else \(lora_te_x"):
        companion(tmp_path, plain | {"lora_te_x.lora_up.weight": torch.zeros(2, 2)})
    with pytest.raises(AdapterFileError, match="no FaceID LoRA"):
        read_companion_lora(tmp_path / "nothing.safetensors", ())
    name = next(name for name in plain if name.endswith("lora_up.weight"))
    with pytest.raises(AdapterFileError, match="128 lora_down and 127 lora_up tensors, and 1 have no partner"):
        companion(tmp_path, {key: tensor for key, tensor in plain.items() if key != name})
    with pytest.raises(AdapterFileError, match="do not fit together"):
        companion(tmp_path, plain | {name: torch.zeros(3, 7)})


def test_a_description_without_all_of_the_lora(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    spec, path = saved(tmp_path, tensors)
    name = "ip_adapter.31.to_out_lora.up.weight"
    kept = {key: at for key, at in spec.tensors.items() if key != name}
    with pytest.raises(AdapterFileError, match=name):
        read_adapter_lora(replace(spec, tensors=kept), path)
