"""Files that are no usable IP-Adapter: each gets its status, its kind and a sentence that says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_ipadapter.library.catalogue import KnownFaceFile, known_face_files
from lib_ipadapter.library.detection import inspect_file

from .synthetic import Shapes, adapter_shapes, lora_shapes, write_safetensors, write_torch


def tensors(*names: str, shape: tuple[int, ...] = (4, 4), dtype: str = "F16") -> Shapes:
    return dict.fromkeys(names, (dtype, shape))


def flux_instantx() -> Shapes:
    found = tensors("image_proj.norm.weight", "image_proj.norm.bias", shape=(4096,))
    found |= tensors("image_proj.proj.0.weight", shape=(2304, 1152)) | tensors("image_proj.proj.2.weight")
    for number in range(57):
        found |= tensors(f"ip_adapter.{number}.to_k_ip.weight", f"ip_adapter.{number}.to_v_ip.weight", shape=(3072, 64))
    return found


def sd35(*, time_embedding: bool) -> Shapes:
    name = "image_proj.time_embedding.linear_1.weight" if time_embedding else "image_proj.latents"
    found = tensors(name)
    for number in range(38):
        found |= tensors(f"ip_adapter.{number}.to_k_ip.weight", f"ip_adapter.{number}.to_v_ip.weight", shape=(2432, 64))
        if not time_embedding:
            found |= tensors(f"ip_adapter.{number}.norm_ip.linear.weight")
    return found


def relative(*names: str) -> Shapes:
    return adapter_shapes("base", "SDXL", narrow=16) | tensors(*names)


def refiners() -> Shapes:
    found = tensors("image_proj.Linear.weight", shape=(3072, 1024))
    for number in range(16):
        found |= tensors(f"ip_adapter.{number:03}.to_k_ip.weight", f"ip_adapter.{number:03}.to_v_ip.weight")
    return found


def unet_paths(*suffixes: str) -> Shapes:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
    return tensors(*(f"{path}.{suffix}" for suffix in suffixes))


UNSUPPORTED = {
    "XLabs Flux": (
        tensors(
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "ip_adapter_proj_model.proj.weight"
        ),
        "XLabs IP-Adapter for Flux",
    ),
    "InstantX Flux, underscores": (
        tensors("image_proj_proj.0.weight", "ip_adapter_0.to_k_ip.weight"), "InstantX IP-Adapter for Flux",
    ),
    "InstantX Flux": (flux_instantx(), "for Flux"),
    "SD3.5 by its projector": (sd35(time_embedding=True), "for SD3.5"),
    "SD3.5 by its attention": (sd35(time_embedding=False), "for SD3.5"),
    "Instruct": (relative("image_proj.new_input_layers.0.weight"), "IP-Adapter-Instruct"),
    "Instruct, other name": (relative("image_proj.proj_new_input.weight"), "IP-Adapter-Instruct"),
    "InstantIR": (relative("ip_adapter.1.ln_k_ip.linear.weight"), "InstantIR"),
    "PuLID, as IP-Adapter": (relative("image_proj.mapping_0.0.weight", "image_proj.body.0.weight"), "PuLID"),
    "PuLID for Flux": (tensors("pulid_encoder.latents", "pulid_ca.0.to_q.weight"), "PuLID file for Flux"),
    "padded attention id": (
        {n.replace("ip_adapter.1.", "ip_adapter.01."): i for n, i in adapter_shapes("base", "SD1", narrow=16).items()},
        "unknown attention key 01.to_k_ip.weight",
    ),
    "second spelling of an attention id": (
        adapter_shapes("base", "SD1", narrow=16) | tensors("ip_adapter.01.to_k_ip.weight"), "unknown attention key 01.",
    ),
    "attention id in other digits": (
        {n.replace("ip_adapter.3.", "ip_adapter.٣."): i for n, i in adapter_shapes("base", "SD1", narrow=16).items()},
        "unknown attention key ٣.",
    ),
    "PuLID": (tensors("pulid_encoder.latents", "id_adapter_attn_layers.0.id_to_k.weight"), "PuLID"),
    "PhotoMaker": (tensors("id_encoder.visual_projection_2.weight", "lora_weights.unet.x"), "PhotoMaker"),
    "CSGO": (tensors("content_image_proj.latents", "style_image_proj.latents", "ip_adapter.1.to_k_ip.weight"), "CSGO"),
    "refiners": (refiners(), "refiners"),
    "refiners, by its projector": (relative("image_proj.Linear.weight"), "refiners"),
    "diffusers projector": (relative("image_proj.image_embeds.weight"), "converted by diffusers"),
    "diffusers resampler": (relative("image_proj.layers.0.ln0.weight"), "converted by diffusers"),
    "diffusers MLP": (relative("image_proj.ff.net.0.proj.weight"), "converted by diffusers"),
    "diffusers UNet": (
        unet_paths("to_k_ip.0.weight") | tensors("encoder_hid_proj.image_projection_layers.0.image_embeds.weight"),
        "diffusers UNet",
    ),
    "unknown attention key": (relative("ip_adapter.1.to_z_ip.weight"), "unknown attention key 1.to_z_ip.weight"),
    "unknown projector": (
        {n: i for n, i in adapter_shapes("base", "SD1").items() if "image_proj" not in n}
        | tensors("image_proj.strange.weight"),
        "unknown projector (strange.weight",
    ),
    "one projector tensor too many": (relative("image_proj.pos_emb.weight"), "unknown tensor pos_emb.weight"),
    "style embedding": (adapter_shapes("base", "SD1", encoder_width=30), "style-embedding"),
    "SigLIP": (adapter_shapes("base", "SDXL", encoder_width=1152), "SigLIP"),
    "SigLIP resampler": (adapter_shapes("plus", "SDXL", encoder_width=1152), "SigLIP"),
    "integers": (adapter_shapes("base", "SD1", dtype="I64"), "stored as I64"),
    "broken FaceID LoRA": (
        tensors("down_blocks_1_attentions_0_transformer_blocks_0_attn1_k_proj.lora_down.weight"), "broken upload",
    ),
}  # fmt: skip


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_family(case: str, container: str, tmp_path: Path) -> None:
    shapes, words = UNSUPPORTED[case]
    write = write_safetensors if container == "safetensors" else write_torch
    report = inspect_file(write(tmp_path / f"ip-adapter.{container}", shapes))
    assert report.status == "unsupported", report.message
    assert words in report.message
    assert report.adapter is None


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (("pulid_ca.0.to_q.weight", "pulid_encoder.latents"), "Flux"),
        (("id_adapter_attn_layers.0.id_to_k.weight", "id_adapter.body.0.weight"), "SDXL"),
        (("module.id_adapter.body.0.weight",), "SDXL"),
    ],
)
def test_pulid_s_two_bases(names: tuple[str, ...], base: str, tmp_path: Path) -> None:
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", tensors(*names)))
    assert (report.status, report.base) == ("unsupported", base)
    assert ("Flux" in report.message) == (base == "Flux")


@pytest.mark.parametrize("base", ["SD1", "SD2", "SDXL"])
@pytest.mark.parametrize("sign", ["proj_new_input", "Linear", "image_embeds", "ff.net.0.proj"])
def test_a_relative_s_base_follows_from_its_context(sign: str, base: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("base", base, narrow=16) | tensors(f"image_proj.{sign}.weight")
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert (report.status, report.base) == ("unsupported", base)


def test_the_base_of_conversions_whose_ids_are_others(tmp_path: Path) -> None:
    found = tensors("image_proj.Linear.weight")
    for number in range(70):
        found |= tensors(f"ip_adapter.{number:03}.Parallel.Linear_1.weight", shape=(640, 2048))
    assert inspect_file(write_safetensors(tmp_path / "a.safetensors", found)).base == "SDXL"
    unet = tensors("encoder_hid_proj.image_projection_layers.0.image_embeds.weight") | unet_paths("to_k_ip.0.weight")
    unet = {f"unet.{n}": (d, (320, 768) if "to_k_ip" in n else s) for n, (d, s) in unet.items()}
    report = inspect_file(write_safetensors(tmp_path / "b.safetensors", unet))
    assert (report.status, report.base) == ("unsupported", "SD1")


def test_kolors_faceid_is_unsupported(tmp_path: Path) -> None:
    shapes = adapter_shapes("faceid_plus", "Kolors", narrow=16, lora_rank=0)
    shapes["image_proj.perceiver_resampler.proj_in.weight"] = ("F16", (4096, 1024))
    report = inspect_file(write_torch(tmp_path / "ipa-faceid-plus.bin", shapes))
    assert (report.status, report.base) == ("unsupported", "Kolors")
    assert "Kolors FaceID" in report.message


@pytest.mark.parametrize(
    ("width", "words"), [(640, "context width 640"), (1280, "context width 1280"), (4096, "context width 4096")]
)
def test_other_context_width(width: int, words: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("base", "SD1", narrow=16)
    shapes = {n: (d, tuple(width if e == 768 else e for e in s)) for n, (d, s) in shapes.items()}
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert report.status == "unsupported"
    assert words in report.message


def test_layers_that_the_base_does_not_have(tmp_path: Path) -> None:
    shapes = adapter_shapes("base", "SD1", narrow=16)
    shapes |= tensors("ip_adapter.33.to_k_ip.weight", "ip_adapter.33.to_v_ip.weight", shape=(16, 768))
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert report.status == "unsupported"
    assert "layer 33" in report.message


def test_a_lora_inside_a_picture_adapter_is_unsupported(tmp_path: Path) -> None:
    shapes = adapter_shapes("base", "SD1", narrow=16, lora_rank=4)
    assert inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes)).status == "unsupported"


def test_inner_width_that_is_no_multiple_of_64(tmp_path: Path) -> None:
    shapes = adapter_shapes("plus", "SD1", narrow=16)
    for name, extents in (("to_q", (96, 64)), ("to_kv", (192, 64)), ("to_out", (64, 96))):
        shapes[f"image_proj.layers.0.0.{name}.weight"] = ("F16", extents)
    report = inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes))
    assert report.status == "unsupported"
    assert "96 wide" in report.message


def controlnet(layout: str, context: int) -> Shapes:
    if layout == "ldm":
        return tensors("control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", shape=(320, context))
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    found = tensors(path, shape=(640, context)) | tensors("controlnet_cond_embedding.conv_in.weight", "conv_in.weight")
    return found | (tensors("add_embedding.linear_1.weight") if context == 2048 else {})


OTHERS = {
    "ldm ControlNet": (controlnet("ldm", 768), "controlnet", "SD1", "ControlNet (ldm"),
    "bare ldm ControlNet": (tensors("input_hint_block.0.weight", "zero_convs.0.0.weight", "input_blocks.0.0.weight"),
                            "controlnet", "", "ControlNet (ldm"),
    "diffusers ControlNet": (controlnet("diffusers", 768), "controlnet", "SD1", "ControlNet (diffusers"),
    "SDXL ControlNet": (controlnet("diffusers", 2048), "controlnet", "SDXL", "ControlNet (diffusers"),
    "ControlLLLite": (tensors("lllite_unet_input_blocks_4.conditioning1.0.weight"), "", "", "ControlLLLite"),
    "Control-LoRA": (tensors("lora_controlnet", "input_blocks.0.0.weight"), "controlnet", "", "Control-LoRA"),
    "kohya LoRA": (tensors("lora_unet_down_blocks_0.lora_down.weight", "lora_te_x.lora_up.weight"), "lora", "", "LoRA"),
    "SDXL LoRA": (tensors("lora_te1_text_model_x.lora_up.weight"), "lora", "", "LoRA"),
    "peft LoRA": (tensors("unet.down_blocks.0.attn.to_q.lora_A.weight"), "lora", "", "LoRA"),
    "diffusers LoRA": (unet_paths("to_q_lora.down.weight", "to_q_lora.up.weight"), "lora", "", "LoRA"),
    "later diffusers LoRA": (tensors("unet.down_blocks.0.attn1.to_q.lora.down.weight"), "lora", "", "LoRA"),
    "diffusers LoRA of a text encoder": (
        tensors("text_encoder.text_model.encoder.layers.0.self_attn.to_q.lora_linear_layer.up.weight"), "lora", "",
        "LoRA",
    ),
    "LoHa": (tensors("some_block.hada_w1_a"), "lora", "", "LoRA"),
    "LoKr": (tensors("some_block.lokr_w1"), "lora", "", "LoRA"),
    "checkpoint": (tensors("model.diffusion_model.x.weight", "first_stage_model.y"), "", "", "full checkpoint"),
    "UNet": (tensors("input_blocks.0.0.weight", "output_blocks.0.0.weight"), "", "", "UNet"),
    "SD3 transformer": (tensors("joint_blocks.0.x.weight"), "", "", "transformer"),
    "Flux transformer": (tensors("double_blocks.0.img_attn.qkv.weight"), "", "", "transformer"),
    "diffusers UNet": (tensors("conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"), "", "", "UNet"),
    "VAE": (tensors("encoder.conv_in.weight", "decoder.conv_in.weight"), "", "", "VAE"),
    "T2I-Adapter": (tensors("adapter.body.0.in_conv.weight"), "", "", "T2I-Adapter"),
    "bare T2I-Adapter": (tensors("body.0.block1.weight"), "", "", "T2I-Adapter"),
    "T2I style": (tensors("style_embedding", "transformer_layes.0.attn.in_proj_weight"), "", "", "T2I style"),
    "text encoder": (tensors("text_model.embeddings.token_embedding.weight"), "", "", "text encoder"),
    "embedding": (tensors("string_to_param.*"), "", "", "embedding"),
    "SDXL embedding": (tensors("clip_l", "clip_g"), "", "", "embedding"),
    "something else": (tensors("foo.weight"), "", "", "Not an IP-Adapter (1 tensors: foo.weight)"),
}  # fmt: skip


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_kind_of_file(case: str, container: str, tmp_path: Path) -> None:
    shapes, kind, base, words = OTHERS[case]
    write = write_safetensors if container == "safetensors" else write_torch
    report = inspect_file(write(tmp_path / f"model.{container}", shapes))
    assert (report.status, report.kind, report.base) == ("not_adapter", kind, base), report.message
    assert words in report.message


def test_a_wrapped_checkpoint_is_still_a_checkpoint(tmp_path: Path) -> None:
    shapes = tensors("state_dict.model.diffusion_model.x.weight", "state_dict.first_stage_model.y")
    assert "full checkpoint" in inspect_file(write_safetensors(tmp_path / "a.safetensors", shapes)).message
    shapes = tensors("model.diffusion_model.x.weight")
    assert "full checkpoint" in inspect_file(write_safetensors(tmp_path / "b.safetensors", shapes)).message


@pytest.mark.parametrize("wrapper", ["state_dict.", "module.", "state_dict.module."])
def test_wrapped_companions_are_still_companions(wrapper: str, tmp_path: Path) -> None:
    def wrapped(shapes: Shapes) -> Shapes:
        return {wrapper + name: info for name, info in shapes.items()}

    path = write_torch(tmp_path / "control_instant_id_sdxl.bin", wrapped(controlnet("diffusers", 2048)))
    report = inspect_file(path)
    assert (report.kind, report.variant, report.base) == ("controlnet", "instantid", "SDXL")
    report = inspect_file(write_torch(tmp_path / "lora.bin", wrapped(lora_shapes("SD1"))))
    assert (report.kind, report.variant, report.base) == ("lora", "faceid", "SD1")


@pytest.mark.parametrize(("base", "alpha", "count"), [("SD1", False, 256), ("SDXL", False, 1120), ("SDXL", True, 1680)])
def test_faceid_companion_lora(base: str, alpha: bool, count: int, tmp_path: Path) -> None:
    shapes = lora_shapes(base, alpha=alpha)
    assert len(shapes) == count
    path = write_safetensors(tmp_path / "a.safetensors", shapes)
    assert path.stat().st_size == {256: 51_059_544, 1680: 371_842_896}.get(count, path.stat().st_size)
    report = inspect_file(path)
    assert (report.status, report.kind, report.variant, report.base) == ("not_adapter", "lora", "faceid", base)
    name = next(iter(shapes))
    other = {**shapes, name.replace("attn1_to_q", "ff_net_0"): shapes.pop(name)}
    assert inspect_file(write_safetensors(path, other)).variant == ""


def test_instantid_controlnet_is_told_by_name_or_hash(tmp_path: Path) -> None:
    shapes = controlnet("diffusers", 2048)
    plain = inspect_file(write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", shapes))
    assert (plain.kind, plain.variant, plain.decided_by) == ("controlnet", "", "shapes")
    path = write_safetensors(tmp_path / "control_instant_id_sdxl.safetensors", shapes)
    named = inspect_file(path)
    assert (named.kind, named.variant, named.base, named.decided_by) == ("controlnet", "instantid", "SDXL", "name")
    digest = "c8127be9f174101ebdafee9964d856b49b634435cf6daa396d3f593cf0bbbb05"
    known = inspect_file(tmp_path / "diffusion_pytorch_model.safetensors", known_sha256=digest)
    assert (known.variant, known.decided_by) == ("instantid", "sha256")


@pytest.mark.parametrize("known", known_face_files(), ids=lambda known: known.names[0])
def test_face_models_are_told_by_length(known: KnownFaceFile, tmp_path: Path) -> None:
    path = tmp_path / "renamed.onnx"
    with path.open("wb") as file:
        file.write(b"\x08\x06\x12\x07pytorch")
        file.truncate(known.bytes)
    report = inspect_file(path)
    assert (report.status, report.kind, report.decided_by) == ("not_adapter", "face_model", "size")
    assert report.encoder == (known.packs if len(known.packs) == 1 else ())


def test_a_face_model_s_name_alone_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "glintr100.onnx"
    path.write_bytes(b"\x08\x06\x12\x07pytorch" + bytes(1000))
    report = inspect_file(path)
    assert (report.kind, report.decided_by, report.encoder) == ("face_model", "name", ("antelopev2",))
    assert "by its name alone" in report.message
    path.rename(tmp_path / "other.onnx")
    assert inspect_file(tmp_path / "other.onnx").kind == ""
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf at all")
    assert inspect_file(tmp_path / "bad.onnx").status == "unreadable"
