"""Every way the same adapter is named and packed gives the same description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lib_ipadapter.library.attention_ids import attention_ids
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.headers import read_header
from lib_ipadapter.library.naming import normalise
from lib_ipadapter.library.spec import AdapterSpec, TensorInfo

from .synthetic import Shapes, adapter_shapes, write_safetensors, write_torch


def renamed(
    shapes: Shapes, projector: str = "image_proj.", attention: str = "ip_adapter.", wrapper: str = ""
) -> Shapes:
    return {
        wrapper + name.replace("image_proj.", projector, 1).replace("ip_adapter.", attention, 1): info
        for name, info in shapes.items()
    }


def accelerate(shapes: Shapes, base: str) -> Shapes:
    paths = {number: path for path, number in attention_ids("SDXL" if base == "SDXL" else "SD").items()}
    found: Shapes = {}
    for name, info in shapes.items():
        part, _, rest = name.partition(".")
        if part == "image_proj":
            found[f"image_proj_model.{rest}"] = info
        else:
            number, _, rest = rest.partition(".")
            found[f"unet.{paths[int(number)]}.processor.{rest}"] = info
    found["unet.conv_in.weight"] = ("F16", (320, 4, 3, 3))
    found["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = ("F16", (640, 2048))
    return found


LAYOUTS: dict[str, Callable[[Shapes, str], Shapes]] = {
    "official": lambda shapes, _: shapes,
    "training": lambda shapes, _: renamed(shapes, "image_proj_model.", "adapter_modules."),
    "both": lambda shapes, _: renamed(shapes, "image_proj_model.", "adapter_modules.") | shapes,
    "half and half": lambda shapes, _: renamed(shapes, "image_proj_model."),
    "accelerate": accelerate,
    "state_dict": lambda shapes, _: renamed(shapes, wrapper="state_dict."),
    "module": lambda shapes, _: renamed(shapes, wrapper="module."),
    "model": lambda shapes, _: renamed(shapes, wrapper="model."),
    "state_dict.module": lambda shapes, _: renamed(shapes, wrapper="state_dict.module."),
    "module + training": lambda shapes, _: renamed(shapes, "image_proj_model.", "adapter_modules.", "module."),
    "module + accelerate": lambda shapes, base: renamed(accelerate(shapes, base), wrapper="module."),
}


def describe(path: Path) -> AdapterSpec:
    report = inspect_file(path)
    assert report.adapter is not None, report.message
    return report.adapter


@pytest.mark.parametrize("container", ["safetensors", "nested", "flat zip", "one storage each"])
@pytest.mark.parametrize("base", ["SD1", "SDXL"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_containers(layout: str, base: str, container: str, tmp_path: Path) -> None:
    kind = "faceid" if base == "SD1" else "plus"
    official = adapter_shapes(kind, base, narrow=32)
    shapes = LAYOUTS[layout](official, base)
    if container == "safetensors":
        path = write_safetensors(tmp_path / "plus.safetensors", shapes)
    else:
        path = write_torch(
            tmp_path / "plus.bin", shapes, nested=container == "nested", flat_storage=container != "one storage each"
        )
    spec = describe(path)
    plain = describe(write_safetensors(tmp_path / "ip-plus.safetensors", official))
    assert replace(spec, tensors={}) == replace(plain, tensors={})
    assert set(spec.tensors) == set(official)
    header = read_header(path)
    for name, there in spec.tensors.items():
        dtype, shape = official[name]
        assert header.tensors[there] == TensorInfo(dtype, shape), (name, there)


def test_official_names_win_when_both_are_there(tmp_path: Path) -> None:
    official = adapter_shapes("base", "SD1", narrow=32)
    path = write_safetensors(tmp_path / "a.safetensors", LAYOUTS["both"](official, "SD1"))
    assert all(name == there for name, there in describe(path).tensors.items())


@pytest.mark.parametrize("base", ["SD1", "SDXL"])
def test_accelerate_names_go_through_the_order_of_processors(base: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", accelerate(adapter_shapes("base", base, narrow=32), base))
    tensors = describe(path).tensors
    last = {"SD1": 31, "SDXL": 121}[base]
    assert tensors[f"ip_adapter.{last}.to_k_ip.weight"] == (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight"
    )
    first = {"SD1": "down_blocks.0", "SDXL": "down_blocks.1"}[base]
    assert tensors["ip_adapter.1.to_v_ip.weight"] == (
        f"unet.{first}.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip.weight"
    )


def test_order_of_processors() -> None:
    sd, sdxl = attention_ids("SD"), attention_ids("SDXL")
    assert (len(sd), len(sdxl)) == (32, 140)
    assert sd["up_blocks.1.attentions.0.transformer_blocks.0.attn2"] == 13
    assert sd["down_blocks.2.attentions.1.transformer_blocks.0.attn1"] == 10
    assert sdxl["down_blocks.2.attentions.0.transformer_blocks.0.attn2"] == 9
    assert sdxl["up_blocks.0.attentions.0.transformer_blocks.0.attn2"] == 49
    assert sdxl["up_blocks.1.attentions.2.transformer_blocks.1.attn2"] == 119
    assert sdxl["mid_block.attentions.0.transformer_blocks.9.attn2"] == 139


def test_sdxl_ids_of_three_digits_are_not_refiners_ids(tmp_path: Path) -> None:
    assert describe(write_safetensors(tmp_path / "a.safetensors", adapter_shapes("base", "SDXL"))).base == "SDXL"


def test_nothing_is_stripped_from_names_that_only_partly_share_a_wrapper() -> None:
    shapes = {"module.image_proj.proj.weight": TensorInfo("F16", (4, 4)), "ip_adapter.1.x": TensorInfo("F16", (4,))}
    names = normalise(shapes)
    assert not names.projector
    assert set(names.attention) == {"1.x"}
