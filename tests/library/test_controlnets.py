"""ControlNets are sized from their tensors in both layouts, and what cannot run as IdentityNet is told why."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lib_ipadapter.library.catalogue import by_id
from lib_ipadapter.library.controlnets import controlnet_shapes, describe_controlnet, read_controlnet
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.headers import read_header
from lib_ipadapter.library.spec import ControlNetSpec
from lib_ipadapter.library.verdicts import Verdict

from .synthetic import Shapes, controlnet_tensors, write_safetensors, write_torch

SIZES = {
    "SDXL": (2048, (320, 640, 1280), (0, 2, 10), 10, (5, 10, 20), 2816),
    "SD1": (768, (320, 640, 1280, 1280), (1, 1, 1, 0), 1, (8, 8, 8, 8), 0),
}
RESIDUALS = {
    "SDXL": (320, 320, 320, 320, 640, 640, 640, 1280, 1280),
    "SD1": (320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280),
}


def sizes(spec: ControlNetSpec) -> tuple[object, ...]:
    return spec.context_dim, spec.channels, spec.depths, spec.mid_depth, spec.heads, spec.y_dim


def test_the_published_file_to_the_byte(tmp_path: Path) -> None:
    known = by_id("instantid_cn")
    # diffusers writes this metadata into every file it saves.
    shapes, metadata = controlnet_tensors("SDXL"), {"format": "pt"}
    path = write_safetensors(tmp_path / Path(known.path).name, shapes, metadata=metadata)
    assert path.stat().st_size == known.bytes == 2_502_139_136
    report = inspect_file(path, known_sha256=known.sha256)
    assert (report.status, report.kind, report.variant, report.base) == (
        "not_adapter",
        "controlnet",
        "instantid",
        "SDXL",
    )
    assert report.controlnet is not None
    assert sizes(report.controlnet) == SIZES["SDXL"]
    assert report.controlnet == read_controlnet(path)


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("base", SIZES)
def test_every_size_is_read_from_shapes(base: str, container: str, tmp_path: Path) -> None:
    shapes = controlnet_tensors(base)
    write = write_safetensors if container == "safetensors" else write_torch
    spec = read_controlnet(write(tmp_path / "any name", shapes))
    assert sizes(spec) == SIZES[base]
    assert (spec.layout, spec.in_channels, spec.hint_channels, spec.hint_widths) == (
        "diffusers", 4, 3, (16, 32, 96, 256),
    )  # fmt: skip
    assert spec.residuals == RESIDUALS[base]
    assert spec.tensors == {name: name for name in shapes}
    expected = {
        name: shape[:2] if ".proj_" in name and len(shape) == 4 else shape for name, (_, shape) in shapes.items()
    }
    assert controlnet_shapes(spec) == expected


def test_a_narrow_and_shallow_net_is_one_too(tmp_path: Path) -> None:
    spec = read_controlnet(
        write_safetensors(tmp_path / "a.safetensors", controlnet_tensors("SDXL", narrow=32, depth=1))
    )
    assert sizes(spec) == (2048, (32, 64, 128), (0, 1, 1), 1, (1, 1, 2), 2816)


LDM = {
    "time_embed.0.weight": "time_embedding.linear_1.weight",
    "label_emb.0.2.bias": "add_embedding.linear_2.bias",
    "input_blocks.0.0.bias": "conv_in.bias",
    "input_blocks.2.0.in_layers.0.weight": "down_blocks.0.resnets.1.norm1.weight",
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0.bias":
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0.bias",
    "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
    "middle_block.2.out_layers.3.bias": "mid_block.resnets.1.conv2.bias",
    "input_hint_block.0.weight": "controlnet_cond_embedding.conv_in.weight",
    "input_hint_block.12.bias": "controlnet_cond_embedding.blocks.5.bias",
    "input_hint_block.14.weight": "controlnet_cond_embedding.conv_out.weight",
    "zero_convs.8.0.weight": "controlnet_down_blocks.8.weight",
    "middle_block_out.0.bias": "controlnet_mid_block.bias",
}  # fmt: skip
"""One name of each kind; tests/parity loads whole files of both layouts and compares them."""


@pytest.mark.parametrize("wrapper", ["", "state_dict."])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_ldm_names(prefix: str, wrapper: str, tmp_path: Path) -> None:
    from tests.core.random_controlnets import ldm_name

    official = controlnet_tensors("SDXL")
    assert {ldm_name(name): name for name in LDM.values()} == LDM
    shapes = {f"{wrapper}{prefix}{ldm_name(name)}": info for name, info in official.items()}
    spec = read_controlnet(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert (spec.layout, sizes(spec)) == ("ldm", SIZES["SDXL"])
    assert spec.tensors == {name: f"{wrapper}{prefix}{ldm_name(name)}" for name in official}


def test_what_lies_beside_a_control_model_is_left_out(tmp_path: Path) -> None:
    from tests.core.random_controlnets import ldm_name

    shapes = {f"control_model.{ldm_name(name)}": info for name, info in controlnet_tensors("SD1").items()}
    beside: Shapes = {"model.diffusion_model.input_blocks.0.0.weight": ("F16", (320, 4, 3, 3)), "betas": ("F32", (9,))}
    spec = read_controlnet(write_safetensors(tmp_path / "a.safetensors", shapes | beside))
    assert len(spec.tensors) == len(shapes)


NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight"
DAMAGE: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]] | None], str]] = {
    "a missing tensor": ({NAME: None}, f"lacks {NAME}"),
    "a missing level": ({"down_blocks.1.resnets.0.conv1.weight": None}, "lacks down_blocks.1.resnets.0.conv1.weight"),
    "a missing first tensor": ({"conv_in.weight": ("F16", (4,))}, r"conv_in.weight has shape \[4\]"),
    "another width": ({NAME: ("F16", (64, 1024))}, r"\[64, 1024\], expected \[64, 2048\]"),
    "fp8": ({NAME: ("F8_E4M3", (64, 2048))}, "stored as F8_E4M3"),
    "one tensor more": ({"down_blocks.0.foo": ("F16", (1,))}, "tensor down_blocks.0.foo"),
    "a union": ({"task_embedding": ("F16", (6, 320))}, "ControlNet Union"),
    "a difference": ({"difference": ("F16", ())}, "difference to its base"),
    "a four-channel hint": (
        {"controlnet_cond_embedding.conv_in.weight": ("F16", (16, 4, 3, 3))}, "a 4-channel picture",
    ),
    "inpainting latents": ({"conv_in.weight": ("F16", (32, 9, 3, 3))}, "9-channel latents"),
    "odd widths": (
        {f"down_blocks.{n}.resnets.0.conv1.weight": ("F16", (33, 32, 3, 3)) for n in range(3)}, "no multiples of 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_run_is_told_why(case: str, tmp_path: Path) -> None:
    changes, words = DAMAGE[case]
    shapes: dict[str, tuple[str, tuple[int, ...]] | None] = {
        **controlnet_tensors("SDXL", narrow=32, depth=1),
        **changes,
    }
    left = {name: info for name, info in shapes.items() if info is not None}
    path = write_safetensors(tmp_path / "net.safetensors", left)
    with pytest.raises(AdapterFileError, match=rf"^net\.safetensors: This ControlNet cannot run .*{words}"):
        read_controlnet(path)
    report = inspect_file(path)
    assert (report.kind, report.controlnet) == ("controlnet", None)


def test_another_file_is_no_controlnet(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"foo.weight": ("F16", (4, 4))})
    with pytest.raises(AdapterFileError, match=r"a\.safetensors: .*lacks"):
        read_controlnet(path)
    with pytest.raises(AdapterFileError):
        read_controlnet(tmp_path / "not there")


@pytest.mark.parametrize("how", ["levels", "depth"])
def test_a_net_without_end_is_refused_quickly(how: str, tmp_path: Path) -> None:
    shapes = controlnet_tensors("SDXL", narrow=32, depth=1)
    for number in range(90):
        if how == "levels":
            shapes[f"down_blocks.{number}.resnets.0.conv1.weight"] = ("F16", (64, 32, 3, 3))
        else:
            shapes[f"down_blocks.1.attentions.0.transformer_blocks.{number}.norm1.weight"] = ("F16", (64,))
    header = read_header(write_safetensors(tmp_path / "a.safetensors", shapes))
    began = time.process_time()
    found = describe_controlnet(header.tensors)
    assert time.process_time() - began < 0.2
    assert isinstance(found, Verdict)
    assert "SDXL's has 3" in found.message
