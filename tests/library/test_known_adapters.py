"""Every adapter of the catalogue, rebuilt with its real keys, shapes, types and length, is told right."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_ipadapter.library.catalogue import KnownFile, by_id, by_sha256, expected_bytes, known_files
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.spec import LAYER_COUNTS, AdapterSpec

from .synthetic import CONTEXTS, WIDTHS, adapter_shapes, write_safetensors, write_torch

H, G, L336 = ("clip_h",), ("clip_g",), ("clip_l_336",)
FACE, FACE_H, ANTELOPE = ("buffalo_l",), ("buffalo_l", "clip_h"), ("antelopev2",)
# id: kind, variant, base, tokens, encoders, feature, image size, decided by (under its own name), by (without it)
EXPECTED = {
    "sd15": ("base", "base", "SD1", 4, H, "pooled", 224, "shapes", "shapes"),
    "sd15.bin": ("base", "base", "SD1", 4, H, "pooled", 224, "shapes", "shapes"),
    "sd15_light": ("base", "light", "SD1", 4, H, "pooled", 224, "shapes", "shapes"),
    "sd15_light.bin": ("base", "light", "SD1", 4, H, "pooled", 224, "shapes", "shapes"),
    "sd15_light_v11": ("base", "light_v11", "SD1", 4, H, "pooled", 224, "shapes", "shapes"),
    "sd15_vit-G": ("base", "vit-G", "SD1", 4, G, "pooled", 224, "shapes", "shapes"),
    "sd15_vit-G.bin": ("base", "vit-G", "SD1", 4, G, "pooled", 224, "shapes", "shapes"),
    "plus_sd15": ("plus", "plus", "SD1", 16, H, "hidden", 224, "name", "default"),
    "plus_sd15.bin": ("plus", "plus", "SD1", 16, H, "hidden", 224, "name", "dtype"),
    "plus_sd15.pth": ("plus", "plus", "SD1", 16, H, "hidden", 224, "name", "dtype"),
    "plus-face_sd15": ("plus", "plus-face", "SD1", 16, H, "hidden", 224, "name", None),
    "plus-face_sd15.bin": ("plus", "plus-face", "SD1", 16, H, "hidden", 224, "name", "dtype"),
    "full-face_sd15": ("full_face", "full-face", "SD1", 257, H, "hidden", 224, "shapes", "shapes"),
    "full-face_sd15.bin": ("full_face", "full-face", "SD1", 257, H, "hidden", 224, "shapes", "shapes"),
    "sdxl": ("base", "base", "SDXL", 4, G, "pooled", 224, "shapes", "shapes"),
    "sdxl.bin": ("base", "base", "SDXL", 4, G, "pooled", 224, "shapes", "shapes"),
    "sdxl_vit-h": ("base", "vit-h", "SDXL", 4, H, "pooled", 224, "shapes", "shapes"),
    "sdxl_vit-h.bin": ("base", "vit-h", "SDXL", 4, H, "pooled", 224, "shapes", "shapes"),
    "plus_sdxl_vit-h": ("plus", "plus", "SDXL", 16, H, "hidden", 224, "name", "default"),
    "plus_sdxl_vit-h.bin": ("plus", "plus", "SDXL", 16, H, "hidden", 224, "name", "default"),
    "plus-face_sdxl_vit-h": ("plus", "plus-face", "SDXL", 16, H, "hidden", 224, "name", None),
    "plus-face_sdxl_vit-h.bin": ("plus", "plus-face", "SDXL", 16, H, "hidden", 224, "size", "size"),
    "composition_sd15": ("plus", "composition", "SD1", 16, H, "hidden", 224, "size", "size"),
    "composition_sdxl": ("plus", "composition", "SDXL", 16, H, "hidden", 224, "size", "size"),
    "faceid_sd15": ("faceid", "", "SD1", 4, FACE, "face", 0, "shapes", "shapes"),
    "faceid-plus_sd15": ("faceid_plus", "", "SD1", 4, FACE_H, "face_hidden", 224, "size", "size"),
    "faceid-plusv2_sd15": ("faceid_plus_v2", "", "SD1", 4, FACE_H, "face_hidden", 224, "size", "size"),
    "faceid-portrait_sd15": ("faceid_portrait", "", "SD1", 16, FACE, "face", 0, "shapes", "shapes"),
    "faceid-portrait-v11_sd15": ("faceid_portrait", "v11", "SD1", 16, FACE, "face", 0, "shapes", None),
    "faceid_sdxl": ("faceid", "", "SDXL", 4, FACE, "face", 0, "shapes", "shapes"),
    "faceid-plusv2_sdxl": ("faceid_plus_v2", "", "SDXL", 4, FACE_H, "face_hidden", 224, "shapes", "shapes"),
    "faceid-portrait_sdxl": ("faceid_portrait", "", "SDXL", 16, FACE, "face", 0, "shapes", "shapes"),
    "faceid-portrait_sdxl_unnorm": ("faceid_portrait_unnorm", "", "SDXL", 16, FACE, "face_raw", 0, "size", "size"),
    "faceid-portrait_sdxl_unnorm.first": (
        "faceid_portrait_unnorm", "", "SDXL", 16, FACE, "face_raw", 0, "size", "size",
    ),
    "instantid_ip": ("instantid", "", "SDXL", 16, ANTELOPE, "face_raw", 0, "size", "size"),
    "noob_kataragi_800k": ("base", "noob", "SDXL", 4, H, "pooled", 224, "shapes", None),
    "noob_kataragi_400k": ("base", "vit-h", "SDXL", 4, H, "pooled", 224, "shapes", "shapes"),
    "noob_mark1": ("base", "noob", "SDXL", 4, G, "pooled", 224, "shapes", None),
    "noob_style_v10": ("base", "style-448", "SDXL", 4, G, "pooled", 448, "name", None),
    "anime_plus_sd15": ("plus", "plus", "SD1", 16, H, "hidden", 224, "name", "default"),
    "wd15_plus": ("plus", "plus", "SD2", 16, H, "hidden", 224, "name", "default"),
    "kolors_plus": ("plus", "plus", "Kolors", 16, L336, "hidden", 336, "shapes", "shapes"),
}  # fmt: skip
LORAS = {"faceid_sd15", "faceid-plus_sd15", "faceid-plusv2_sd15", "faceid_sdxl", "faceid-plusv2_sdxl"}
# The published safetensors files have no metadata; their lengths follow from the tensors alone.
BYTE_EXACT = (
    "sd15", "sd15_light", "sd15_vit-G", "plus_sd15", "plus-face_sd15", "full-face_sd15", "sdxl", "sdxl_vit-h",
    "plus_sdxl_vit-h", "plus-face_sdxl_vit-h", "noob_style_v10",
)  # fmt: skip


def published(known: KnownFile, folder: Path, name: str | None = None) -> Path:
    """Rebuild a published file: sparse, of its exact length where that is known."""
    kind, _, base = EXPECTED[known.id][:3]
    encoder = {"clip_g": 1280}.get(known.encoders[0]) if kind == "base" else None
    mixed = known.dtype == "F32+F16"
    dtype = "F16" if mixed or "F16" in known.dtype else known.dtype
    shapes = adapter_shapes(kind, base, encoder_width=encoder, dtype=dtype, projector_dtype="F32" if mixed else None)
    if known.id == "noob_mark1":
        other = {"image_proj": "image_proj_model", "ip_adapter": "adapter_modules"}
        shapes |= {f"{other[n.partition('.')[0]]}.{n.partition('.')[2]}": info for n, info in shapes.items()}
    path = folder / (name or known.name)
    if known.container == "safetensors":
        return write_safetensors(path, shapes, size=known.bytes)
    return write_torch(path, shapes, size=known.bytes, flat_storage=known.dtype != "F32")


def test_every_known_adapter_is_expected_here() -> None:
    assert {known.id for known in known_files() if known.status == "supported"} == set(EXPECTED)


@pytest.mark.parametrize("known_id", EXPECTED)
def test_published_file_under_its_own_name(known_id: str, tmp_path: Path) -> None:
    known = by_id(known_id)
    path = published(known, tmp_path)
    report = inspect_file(path)
    kind, variant, base, tokens, encoders, feature, image_size, rule, _ = EXPECTED[known_id]
    assert report.status == "supported", report.message
    found = (report.kind, report.variant, report.base, report.tokens, report.encoder, report.decided_by)
    assert found == (kind, variant, base, tokens, encoders, rule)
    spec = report.adapter
    assert spec is not None
    assert (spec.feature, spec.image_size, spec.context_dim) == (feature, image_size, CONTEXTS[base])
    assert spec.lora_rank == (128 if known_id in LORAS else 0)
    assert tuple(spec.layers) == tuple(range(1, 2 * LAYER_COUNTS[spec.base], 2))
    assert tuple(spec.layers.values()) == WIDTHS[base]
    assert set(spec.tensors) == {n for n in spec.tensors if n.startswith(("image_proj.", "ip_adapter."))}
    if known.bytes is not None:
        assert path.stat().st_size == known.bytes


@pytest.mark.parametrize("known_id", [key for key, row in EXPECTED.items() if row[-1] is not None])
def test_renamed_file_is_told_by_what_is_in_it(known_id: str, tmp_path: Path) -> None:
    known = by_id(known_id)
    suffix = ".safetensors" if known.container == "safetensors" else ".bin"
    report = inspect_file(published(known, tmp_path, "renamed" + suffix))
    kind, variant, base, tokens, encoders, *_, rule = EXPECTED[known_id]
    if variant in ("light", "light_v11", "noob"):
        variant = "vit-h" if base == "SDXL" else "base"
    found = (report.kind, report.variant, report.base, report.tokens, report.encoder, report.decided_by)
    assert found == (kind, variant, base, tokens, encoders, rule)


@pytest.mark.parametrize(
    "known_id", [key for key in EXPECTED if key in {known.id for known in known_files() if known.sha256}]
)
def test_a_given_digest_beats_the_name(known_id: str, tmp_path: Path) -> None:
    known = by_id(known_id)
    name = {"plus": "composition", "base": "x", "faceid_plus": "plusv2"}.get(known.kind, "instant_unnorm")
    path = published(known, tmp_path, name + (".safetensors" if known.container == "safetensors" else ".bin"))
    digest = (known.sha256 + "0" * 64)[:64]
    report = inspect_file(path, known_sha256=digest)
    assert (report.kind, report.variant, report.decided_by) == (known.kind, known.variant, "sha256")
    assert by_sha256(digest) == known


@pytest.mark.parametrize("known_id", BYTE_EXACT)
def test_lengths_follow_from_the_shapes(known_id: str, tmp_path: Path) -> None:
    known = by_id(known_id)
    kind, _, base = EXPECTED[known_id][:3]
    encoder = 1280 if known.encoders == G else None
    path = write_safetensors(tmp_path / "f.safetensors", adapter_shapes(kind, base, encoder_width=encoder))
    assert path.stat().st_size == known.bytes


def test_projector_dimensions_are_read_from_shapes(tmp_path: Path) -> None:
    def projector(kind: str, base: str) -> tuple[object, ...]:
        spec = _spec(write_safetensors(tmp_path / f"{kind}{base}.safetensors", adapter_shapes(kind, base)))
        p = spec.projector
        return p.family, p.tokens, p.input_dim, p.output_dim, p.hidden_dim, p.dim, p.heads, p.depth

    assert projector("base", "SD1") == ("linear", 4, 1024, 768, 0, 0, 0, 0)
    assert projector("plus", "SD1") == ("resampler", 16, 1280, 768, 0, 768, 12, 4)
    assert projector("plus", "SDXL") == ("resampler", 16, 1280, 2048, 0, 1280, 20, 4)
    assert projector("plus", "Kolors") == ("resampler", 16, 1024, 2048, 0, 2048, 12, 4)
    assert projector("instantid", "SDXL") == ("resampler", 16, 512, 2048, 0, 1280, 20, 4)
    assert projector("full_face", "SD1") == ("full_face", 257, 1280, 768, 0, 1280, 0, 0)
    assert projector("faceid", "SDXL") == ("face_mlp", 4, 512, 2048, 0, 1024, 0, 0)
    assert projector("faceid_plus", "SDXL") == ("face_plus", 4, 512, 2048, 1280, 2048, 32, 4)


def _spec(path: Path) -> AdapterSpec:
    report = inspect_file(path)
    assert report.adapter is not None, report.message
    return report.adapter


@pytest.mark.parametrize("base", ["SD1", "SD2", "SDXL"])
@pytest.mark.parametrize(
    "kind", ["base", "plus", "full_face", "faceid", "faceid_plus_v2", "faceid_portrait", "instantid"]
)
def test_narrow_nets_are_legal(kind: str, base: str, tmp_path: Path) -> None:
    width = 32 if kind in ("base", "plus", "full_face") else None
    path = write_safetensors(
        tmp_path / f"{kind}.safetensors", adapter_shapes(kind, base, narrow=16, encoder_width=width)
    )
    spec = _spec(path)
    assert (spec.kind, spec.base) == (kind, base)
    assert set(spec.layers.values()) == {width * 16 // 320 for width in WIDTHS[base]}
    if width:
        assert spec.encoders == ()
        assert spec.projector.input_dim == width


def test_expected_length_of_a_published_name() -> None:
    assert expected_bytes("IP-Adapter_SD15.safetensors") == 44_642_768
    assert expected_bytes("InstantId_model.bin") == 1_691_134_141
    assert expected_bytes("ip-adapter.bin") is None  # three publishers call theirs so
    assert expected_bytes("model.safetensors") is None  # three different encoders are called so
    assert expected_bytes("unheard-of.bin") is None
