"""What shapes cannot tell: each rule answers in its turn and is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_ipadapter.library.catalogue import ShortHash, by_id
from lib_ipadapter.library.detection import describe, inspect_file
from lib_ipadapter.library.fingerprints import short_hash
from lib_ipadapter.library.headers import read_header

from .synthetic import adapter_shapes, write_safetensors, write_torch


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("ip-adapter-faceid-plusv2_sd15", "faceid_plus_v2", "name"),
        ("my FaceID Plus V2", "faceid_plus_v2", "name"),
        ("ip-adapter-faceid-plus_sd15", "faceid_plus", "name"),
        ("ip-adapter_faceid_plus", "faceid_plus", "name"),
        ("IP-Adapter-FaceIDPlusV2-SD15", "faceid_plus_v2", "name"),
        ("faceid-plus_v2.1", "faceid_plus_v2", "name"),
        ("faceid-plus_dev20", "faceid_plus", "name"),
        ("dev20", "faceid_plus_v2", "default"),
        ("my_v20", "faceid_plus_v2", "default"),
        ("a", "faceid_plus_v2", "default"),
    ],
)
def test_faceid_plus_versions(name: str, kind: str, rule: str, tmp_path: Path) -> None:
    report = inspect_file(write_torch(tmp_path / f"{name}.bin", adapter_shapes("faceid_plus", "SD1")))
    assert (report.kind, report.decided_by) == (kind, rule)


def test_sdxl_has_only_version_two(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "ip-adapter-faceid-plus_sdxl.bin", adapter_shapes("faceid_plus", "SDXL"))
    report = inspect_file(path)
    assert (report.kind, report.decided_by) == ("faceid_plus_v2", "shapes")


@pytest.mark.parametrize(
    ("name", "types", "kind", "rule"),
    [
        ("ip-adapter_instant_id_sdxl", ("F16", "F16"), "instantid", "name"),
        ("faceid-portrait_unnorm", ("F32", "F32"), "faceid_portrait_unnorm", "name"),
        ("a", ("F32", "F32"), "instantid", "dtype"),
        ("a", ("F32", "F16"), "faceid_portrait_unnorm", "dtype"),
        ("a", ("F16", "F16"), "instantid", "default"),
    ],
)
def test_instantid_or_unnorm(name: str, types: tuple[str, str], kind: str, rule: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("instantid", "SDXL", projector_dtype=types[0], dtype=types[1])
    report = inspect_file(write_safetensors(tmp_path / f"{name}.safetensors", shapes))
    assert (report.kind, report.decided_by) == (kind, rule)
    assert report.encoder == (("antelopev2",) if kind == "instantid" else ("buffalo_l",))


@pytest.mark.parametrize(
    ("name", "variant", "rule"),
    [
        ("ip_plus_composition_sd15", "composition", "name"),
        ("ip-adapter-plus-face_sd15", "plus-face", "name"),
        ("ip-adapter_plus_face", "plus-face", "name"),
        ("my.face.adapter", "plus-face", "name"),
        ("ip-adapter-plus_sd15", "plus", "name"),
        ("surface", "plus", "default"),
        ("hugging_face", "plus", "default"),
        ("hugging-face", "plus", "default"),
        ("huggingface", "plus", "default"),
        ("a", "plus", "default"),
    ],
)
def test_plus_face_and_composition(name: str, variant: str, rule: str, tmp_path: Path) -> None:
    report = inspect_file(write_safetensors(tmp_path / f"{name}.safetensors", adapter_shapes("plus", "SD1")))
    assert (report.variant, report.decided_by) == (variant, rule)
    assert ("file name alone" in report.message) == (rule == "name")


def test_metadata_names_the_composition_adapter(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "a.safetensors", adapter_shapes("plus", "SD1"), metadata={"title": "Composition adapter"}
    )
    report = inspect_file(path)
    assert (report.variant, report.decided_by) == ("composition", "metadata")


@pytest.mark.parametrize(
    ("name", "metadata", "variant", "rule"),
    [
        ("ip-adapter-plus_sd15", {"note": "exported with hugging-face tools"}, "plus", "name"),
        ("ip-adapter-plus_sd15", {"title": "plus-face"}, "plus", "name"),
        ("a", {"note": "not for face or composition", "format": "pt"}, "plus", "default"),
        ("a", {"source": "plus-face"}, "plus", "default"),
        ("a", {"name": "ip-adapter-plus-face_sd15"}, "plus-face", "metadata"),
        ("a", {"ss_output_name": "my_face"}, "plus-face", "metadata"),
        ("a", {"modelspec.title": "IP Composition"}, "composition", "metadata"),
        ("a", {"title": "A Hugging Face model"}, "plus", "default"),
    ],
)
def test_only_titles_count_and_only_after_the_name(
    name: str, metadata: dict[str, str], variant: str, rule: str, tmp_path: Path
) -> None:
    shapes = adapter_shapes("plus", "SD1")
    report = inspect_file(write_safetensors(tmp_path / f"{name}.safetensors", shapes, metadata=metadata))
    assert (report.variant, report.decided_by) == (variant, rule)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("sunlight", "base"),
        ("lightning_sd15", "base"),
        ("lightweight", "base"),
        ("ip-adapter_sd15_light", "light"),
        ("ip-adapter_sd15_light_v11", "light_v11"),
        ("sd15light", "light"),
    ],
)
def test_the_word_shown_for_a_plain_adapter(name: str, variant: str, tmp_path: Path) -> None:
    report = inspect_file(write_safetensors(tmp_path / f"{name}.safetensors", adapter_shapes("base", "SD1")))
    assert (report.kind, report.variant, report.decided_by) == ("base", variant, "shapes")


@pytest.mark.parametrize(
    ("types", "variant"), [(("F32", "F16"), "plus"), (("F16", "F16"), "plus-face"), (("F32", "F32"), "plus")]
)
def test_types_of_a_pickled_sd1_plus(types: tuple[str, str], variant: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("plus", "SD1", projector_dtype=types[0], dtype=types[1])
    report = inspect_file(write_torch(tmp_path / "a.bin", shapes))
    assert (report.variant, report.decided_by) == (variant, "dtype")


def test_bfloat16_types_say_nothing(tmp_path: Path) -> None:
    report = inspect_file(write_torch(tmp_path / "a.bin", adapter_shapes("plus", "SD1", dtype="BF16")))
    assert (report.variant, report.decided_by) == ("plus", "default")


@pytest.mark.parametrize("sure", [True, False])
def test_the_short_hash_beats_size_and_name(sure: bool, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "ip-adapter-plus.safetensors", adapter_shapes("plus", "SD1"))
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"the weights")
    row = replace(by_id("plus-face_sd15"), w8=(ShortHash(short_hash(path), sure),))
    report = describe(read_header(path), path, [by_id("plus_sd15"), row])
    assert (report.variant, report.decided_by) == ("plus-face", "w8")


def test_an_equal_length_of_two_files_decides_nothing(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", adapter_shapes("plus", "SD1"))
    assert by_id("plus_sd15").bytes == by_id("plus-face_sd15").bytes == path.stat().st_size
    assert inspect_file(path).decided_by == "default"


def test_the_user_s_choice_beats_everything(tmp_path: Path) -> None:
    known = by_id("plus_sd15")
    path = write_safetensors(tmp_path / "ip-adapter-plus.safetensors", adapter_shapes("plus", "SD1"))
    report = inspect_file(path, override="composition", known_sha256=known.sha256)
    assert (report.variant, report.decided_by) == ("composition", "override")
    shapes = adapter_shapes("instantid", "SDXL")
    path = write_safetensors(tmp_path / "instantid.safetensors", shapes)
    assert inspect_file(path, override="faceid_portrait_unnorm").kind == "faceid_portrait_unnorm"
    assert inspect_file(path, override="composition").kind == "instantid"  # not among this file's answers


@pytest.mark.parametrize(
    ("name", "digest", "variant", "rule"),
    [
        ("styleIpadapterFor_v10", None, "style-448", "name"),
        ("x", "c07d3f30" + "0" * 56, "style-448", "sha256"),
        ("x", None, "base", "shapes"),
        ("ip-adapter_sdxl", None, "base", "shapes"),
    ],
)
def test_448_px_style_adapter(name: str, digest: str | None, variant: str, rule: str, tmp_path: Path) -> None:
    shapes = adapter_shapes("base", "SDXL", encoder_width=1280)
    path = write_safetensors(tmp_path / f"{name}.safetensors", shapes)
    report = inspect_file(path, known_sha256=digest)
    assert (report.variant, report.decided_by) == (variant, rule)
    assert report.adapter is not None
    assert report.adapter.image_size == (448 if variant == "style-448" else 224)
