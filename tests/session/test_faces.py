"""From photos of a person to keys and values: every FaceID kind written out a second time, and what is reused."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, normalize

from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.encoders.clip_vision import load_vision_encoder, pixel_tensor
from lib_ipadapter.library.errors import AdapterNotFoundError, EncoderNotFoundError, FacePackError, NoFaceError
from lib_ipadapter.library.spec import Kind
from lib_ipadapter.session.faces import FacePool, mean_embedding, misfits
from lib_ipadapter.session.features import EncoderPool, Reference
from lib_ipadapter.session.prepare import PreparedUnit, prepare_unit
from lib_ipadapter.session.services import Services
from lib_ipadapter.units.face_choice import FaceChoice
from lib_ipadapter.units.images import digest
from lib_ipadapter.units.unit import Unit
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.face_models import write_face_pack
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder
from tests.session.fakes import HIDDEN, PROJECTED, FakeHost, make_unet, services

KINDS: dict[Kind, str] = {
    "faceid": "ip-adapter-faceid_sd15",
    "faceid_plus": "ip-adapter-faceid-plus_sd15",
    "faceid_plus_v2": "ip-adapter-faceid-plusv2_sd15",
    "faceid_portrait": "ip-adapter-faceid-portrait_sd15",
}


def encoded_picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


ANNA, BERT, NOBODY = (encoded_picture(image) for image in (portrait(1), portrait(3), Image.new("RGB", (300, 200))))
BOTH = encoded_picture(
    Image.fromarray(face_picture(900, 500, [DrawnFace(200, 250, 180, 3), DrawnFace(650, 250, 260, 1)]))
)


def write_models(folder: Path, kinds: dict[Kind, str] = KINDS) -> None:
    widths = [layer.width for layer in find_cross_attention(make_unet())]
    tower = random_vision_encoder_tensors(HIDDEN, 2, mlp=HIDDEN, patch=14, positions=17, projected=PROJECTED)
    save_vision_encoder(folder / "encoder.safetensors", tower)
    for seed, (kind, name) in enumerate(kinds.items()):
        sizes = {"input_dim": HIDDEN, "depth": 1, "heads": 2} if "plus" in kind else {}
        tensors = random_adapter_tensors(kind, 768, widths, seed=seed, **sizes)
        save_adapter(folder / f"{name}.safetensors", tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_models(made)
    write_face_pack(made / "buffalo_l")
    return made


@pytest.fixture
def given(folder: Path) -> Services:
    return services(FakeHost(torch.nn.Identity()), folder)


def prepare(given: Services, unit: Unit) -> tuple[PreparedUnit, FacePool]:
    choice = given.models.choose(unit.adapter, unit.intent, ["SD1"])
    with EncoderPool(given.host, given.cache) as pool, FacePool(given.host, given.cache) as faces:
        one = prepare_unit(1, unit, choice, pool=pool, faces=faces, store=given.store(), cache=given.cache)
        return one, faces


def face_unit(kind: Kind, *images: str, **fields: object) -> Unit:
    return Unit(intent="face", adapter=f"{KINDS[kind]}.safetensors", images=images, **fields)  # type: ignore[arg-type]


def read(given: Services, data: str, choice: FaceChoice = FaceChoice()) -> torch.Tensor:  # noqa: B008 - frozen
    """The raw embedding (512,) of a picture's face."""
    content = base64.b64decode(data)
    with FacePool(given.host, given.cache) as faces:
        pack = given.models.face_pack("buffalo_l")
        return faces.read(pack, Reference("picture 1", digest(content), content), choice).embedding


def face_mlp(weights: dict[str, torch.Tensor], face: torch.Tensor) -> torch.Tensor:
    """MLPProjModel of tencent-ailab/IP-Adapter's ip_adapter_faceid.py: (n, 512) -> (n, T, 768)."""
    inner = gelu(linear(face, weights["image_proj.proj.0.weight"], weights["image_proj.proj.0.bias"]))
    out = linear(inner, weights["image_proj.proj.2.weight"], weights["image_proj.proj.2.bias"])
    norm = weights["image_proj.norm.weight"], weights["image_proj.norm.bias"]
    return layer_norm(out.view(len(face), -1, 768), (768,), *norm)


def check_rows(prepared: PreparedUnit, weights: dict[str, torch.Tensor], cond: torch.Tensor, un: torch.Tensor) -> None:
    """Keys and values are these tokens (T', 768) times the file's matrices, prompt row first."""
    for key_id, pair in prepared.kv.items():
        for name, tensor in zip("kv", pair, strict=True):
            weight = weights[f"ip_adapter.{key_id}.to_{name}_ip.weight"]
            torch.testing.assert_close(tensor[0], cond @ weight.T, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(tensor[1], un @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["faceid", "faceid_portrait"])
def test_an_embedding_of_unit_length_becomes_tokens_and_zeros_the_negative(
    given: Services, folder: Path, kind: Kind
) -> None:
    prepared, faces = prepare(given, face_unit(kind, ANNA))
    weights = load_file(folder / f"{KINDS[kind]}.safetensors")
    cond = face_mlp(weights, normalize(read(given, ANNA), dim=0)[None])[0]
    check_rows(prepared, weights, cond, face_mlp(weights, torch.zeros(1, 512))[0])
    assert faces.analysed == 1
    assert prepared.notes == ()


@pytest.mark.parametrize("amount", [0.0, 0.35, 1.0])
def test_the_negatives_noise_is_so_much_of_a_direction_of_unit_length(
    given: Services, folder: Path, amount: float
) -> None:
    prepared, _ = prepare(given, face_unit("faceid", ANNA, uncond="noise", uncond_noise=amount))
    seed = hashlib.sha256(digest(base64.b64decode(ANNA)).encode()).hexdigest()[:15]
    noise = torch.randn(1, 512, generator=torch.Generator().manual_seed(int(seed, 16)))
    weights = load_file(folder / f"{KINDS['faceid']}.safetensors")
    cond = face_mlp(weights, normalize(read(given, ANNA), dim=0)[None])[0]
    check_rows(prepared, weights, cond, face_mlp(weights, amount * normalize(noise, dim=1))[0])


def test_plain_faceid_looks_for_no_vision_encoder(tmp_path: Path) -> None:
    write_models(tmp_path, {"faceid": KINDS["faceid"]})
    (tmp_path / "encoder.safetensors").unlink()
    write_face_pack(tmp_path / "buffalo_l")
    given = services(FakeHost(torch.nn.Identity()), tmp_path)
    prepared, _ = prepare(given, Unit(intent="face", images=(ANNA,)))
    assert prepared.choice.encoder is None
    assert prepared.choice.sources == "buffalo_l"


@pytest.mark.parametrize(("kind", "s_scale"), [("faceid_plus", 1.0), ("faceid_plus_v2", 1.0), ("faceid_plus_v2", 2.5)])
def test_the_plus_kinds_see_the_aligned_crop_beside_the_embedding(
    given: Services, folder: Path, kind: Kind, s_scale: float
) -> None:
    prepared, _ = prepare(given, face_unit(kind, ANNA, s_scale=s_scale))
    choice = prepared.choice
    content = base64.b64decode(ANNA)
    with FacePool(given.host, given.cache) as faces:
        reading = faces.read(choice.require_pack(), Reference("", digest(content), content), FaceChoice())
    assert reading.crop.size == (224, 224)
    encoder = choice.require_encoder()
    tower = load_vision_encoder(encoder.spec, encoder.path, device=torch.device("cpu"), dtype=torch.float32)
    side = encoder.spec.image_size
    hidden = tower(pixel_tensor([reading.crop.resize((side, side), Image.Resampling.BICUBIC)]), want="hidden").hidden
    nothing = tower(torch.zeros(1, 3, side, side), want="hidden").hidden
    from lib_ipadapter.core.adapter import load_adapter

    adapter = load_adapter(choice.spec, choice.path)
    options = {"shortcut": kind == "faceid_plus_v2", "s_scale": s_scale}
    with torch.no_grad():
        cond = adapter.projector(normalize(reading.embedding, dim=0)[None], hidden, **options)[0]
        un = adapter.projector(torch.zeros(1, 512), nothing, **options)[0]
    check_rows(prepared, load_file(folder / f"{KINDS[kind]}.safetensors"), cond, un)


def test_a_raw_embedding_goes_into_the_resampler_as_it_is(tmp_path: Path) -> None:
    widths = (32,) * 70
    tensors = random_adapter_tensors("faceid_portrait_unnorm", 2048, widths, dim=64, heads=1, depth=1)
    save_adapter(tmp_path / "ip-adapter-faceid-portrait_sdxl_unnorm.safetensors", tensors)
    write_face_pack(tmp_path / "buffalo_l")
    given = services(FakeHost(torch.nn.Identity()), tmp_path)
    choice = given.models.choose("auto", "face", ["SDXL"])
    assert choice.spec.kind == "faceid_portrait_unnorm"
    unit = Unit(intent="face", images=(ANNA,))
    with EncoderPool(given.host, given.cache) as pool, FacePool(given.host, given.cache) as faces:
        prepared = prepare_unit(1, unit, choice, pool=pool, faces=faces, store=given.store(), cache=given.cache)
    from lib_ipadapter.core.adapter import load_adapter

    adapter = load_adapter(choice.spec, choice.path)
    raw = read(given, ANNA)
    assert abs(float(raw.norm()) - 1) > 0.1, "this recogniser's embeddings are not of unit length"
    with torch.no_grad():
        cond, un = adapter.projector(raw[None])[0], adapter.projector(torch.zeros(1, 512))[0]
    check_rows(prepared, tensors, cond, un)


def test_photos_of_one_person_are_averaged_and_portrait_keeps_them_apart(given: Services, folder: Path) -> None:
    anna, bert = read(given, ANNA), read(given, BERT)
    unit_length = torch.stack([normalize(anna, dim=0), normalize(bert, dim=0)])
    weights = load_file(folder / f"{KINDS['faceid']}.safetensors")
    mean = normalize(unit_length.mean(dim=0, keepdim=True), dim=1)
    prepared, _ = prepare(given, face_unit("faceid", ANNA, BERT))
    check_rows(prepared, weights, face_mlp(weights, mean)[0], face_mlp(weights, torch.zeros(1, 512))[0])
    weights = load_file(folder / f"{KINDS['faceid_portrait']}.safetensors")
    prepared, _ = prepare(given, face_unit("faceid_portrait", ANNA, BERT))
    tokens = face_mlp(weights, unit_length).flatten(0, 1)
    assert tokens.shape == (32, 768)
    check_rows(prepared, weights, tokens, face_mlp(weights, torch.zeros(2, 512)).flatten(0, 1))


@pytest.mark.parametrize("combine", ["concat", "mean", "average"])
def test_the_order_of_averaged_photos_does_not_matter(given: Services, combine: str) -> None:
    one, _ = prepare(given, face_unit("faceid", ANNA, BERT, combine=combine))
    other, _ = prepare(given, face_unit("faceid", BERT, ANNA, combine=combine))
    same = torch.allclose(one.kv[1][0], other.kv[1][0], atol=1e-5)
    assert same == (combine != "concat")
    twice, _ = prepare(given, face_unit("faceid", ANNA, ANNA, combine=combine))
    once, _ = prepare(given, face_unit("faceid", ANNA))
    torch.testing.assert_close(twice.kv[1][0][:, : once.kv[1][0].shape[1]], once.kv[1][0], atol=1e-5, rtol=1e-5)


def test_the_chosen_face_is_the_one_that_goes_in(given: Services) -> None:
    anna, bert = (normalize(read(given, picture), dim=0) for picture in (ANNA, BERT))

    def likeness(choice: FaceChoice) -> tuple[bool, bool]:
        found = normalize(read(given, BOTH, choice), dim=0)
        return bool(found @ anna > 0.8), bool(found @ bert > 0.8)

    assert likeness(FaceChoice()) == (True, False), "Anna's is the larger face"
    assert likeness(FaceChoice("index", index=1)) == (False, True), "Bert's is further to the left"
    assert likeness(FaceChoice("point", point=(0.2, 0.5))) == (False, True)
    first, _ = prepare(given, face_unit("faceid", BOTH))
    second, _ = prepare(given, face_unit("faceid", BOTH, face="1"))
    assert not torch.equal(first.kv[1][0], second.kv[1][0])


def test_a_picture_without_a_face_is_named(given: Services) -> None:
    with pytest.raises(NoFaceError, match="picture 2"):
        prepare(given, face_unit("faceid", ANNA, NOBODY))
    with pytest.raises(NoFaceError, match=r"Face 3 .*one face.*picture 1"):
        prepare(given, face_unit("faceid", ANNA, face="3"))


def test_a_photo_of_somebody_else_is_named_with_its_cosine(given: Services) -> None:
    prepared, _ = prepare(given, face_unit("faceid", ANNA, ANNA, BERT))
    assert any("picture 3" in note and "cosine" in note for note in prepared.notes), prepared.notes
    assert not any("picture 1" in note for note in prepared.notes)
    again, faces = prepare(given, face_unit("faceid", ANNA, ANNA, BERT))
    assert again.notes == prepared.notes, "what is taken from the cache is told of as well"
    assert faces.analysed == 0


def test_a_second_job_analyses_nothing_and_another_choice_only_recognises(given: Services) -> None:
    prepare(given, face_unit("faceid", BOTH))
    assert prepare(given, face_unit("faceid", BOTH))[1].analysed == 0
    assert prepare(given, face_unit("faceid_plus_v2", BOTH))[1].analysed == 0
    assert prepare(given, face_unit("faceid", BOTH, face="best"))[1].analysed == 0
    with pytest.raises(NoFaceError, match="picture 1"):
        prepare(given, face_unit("faceid", NOBODY))
    choice = given.models.choose("auto", "face", ["SD1"])
    content = base64.b64decode(NOBODY)
    with FacePool(given.host, given.cache) as faces:
        with pytest.raises(NoFaceError, match="picture 7"):
            faces.faces(choice.require_pack(), Reference("picture 7", digest(content), content))
        assert faces.analysed == 0, "a picture without a face is searched once"


def test_a_choice_means_the_same_face_whatever_was_asked_before(given: Services) -> None:
    """A third face that only a harder search finds must not change who the first two are."""
    drawn = [DrawnFace(1500, 300, 200, 1), DrawnFace(2200, 300, 260, 3), DrawnFace(300, 900, 28, 5)]
    group = encoded_picture(Image.fromarray(face_picture(2560, 1200, drawn)))
    before = [read(given, group, choice) for choice in (FaceChoice("index", index=1), FaceChoice("best"))]
    content = base64.b64decode(group)
    pack = given.models.face_pack("buffalo_l")
    with FacePool(given.host, given.cache) as faces:
        reference = Reference("picture 1", digest(content), content)
        assert len(faces.faces(pack, reference)) < len(faces.faces(pack, reference, 3))
    given.cache.put(("face", digest(content), pack.fingerprint, "1"), None, 0)
    given.cache.put(("face", digest(content), pack.fingerprint, "best"), None, 0)
    after = [read(given, group, choice) for choice in (FaceChoice("index", index=1), FaceChoice("best"))]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_mean_embeddings_are_as_long_as_the_photos_are_on_average() -> None:
    rows = torch.randn(3, 512) * torch.tensor([[10.0], [20.0], [30.0]])
    mean = mean_embedding(rows)
    assert mean.shape == (1, 512)
    torch.testing.assert_close(mean.norm(), rows.norm(dim=1).mean())
    stretched = mean_embedding(rows * torch.tensor([[5.0], [1.0], [0.1]]))
    assert float(torch.cosine_similarity(stretched, mean)) > 1 - 1e-6, "each photo counts the same"


def test_two_strangers_are_told_of_once() -> None:
    rows = torch.eye(512)[:2]
    assert len(misfits(rows, ["picture 1", "picture 2"])) == 1
    assert misfits(rows[:1], ["picture 1"]) == []
    assert misfits(torch.ones(3, 512), ["a", "b", "c"]) == []


def test_auto_takes_plus_v2_for_a_face_and_no_face_adapter_for_a_picture(given: Services) -> None:
    assert given.models.choose("auto", "face", ["SD1"]).spec.kind == "faceid_plus_v2"
    with pytest.raises(AdapterNotFoundError, match="pictures"):
        given.models.choose("auto", "image", ["SD1"])


def test_what_feeds_an_adapter_decides_and_what_is_missing_is_said(tmp_path: Path) -> None:
    write_models(tmp_path)
    given = services(FakeHost(torch.nn.Identity()), tmp_path)
    with pytest.raises(FacePackError, match="buffalo_l"):
        given.models.choose("auto", "face", ["SD1"])
    write_face_pack(tmp_path / "buffalo_l")
    (tmp_path / "encoder.safetensors").unlink()
    given.models.refresh()
    assert given.models.choose("auto", "face", ["SD1"]).spec.kind == "faceid", "the first that has all it needs"
    with pytest.raises(EncoderNotFoundError, match="faceid-plus"):
        given.models.choose("ip-adapter-faceid-plusv2_sd15", "face", ["SD1"])


def test_clip_face_adapters_stand_in_only_where_there_is_no_faceid(tmp_path: Path) -> None:
    write_models(tmp_path, {"plus": "ip-adapter-plus-face_sd15"})
    given = services(FakeHost(torch.nn.Identity()), tmp_path)
    assert given.models.choose("auto", "face", ["SD1"]).spec.variant == "plus-face"
    write_models(tmp_path, {"faceid": KINDS["faceid"]})
    given.models.refresh()
    with pytest.raises(FacePackError):
        given.models.choose("auto", "face", ["SD1"])
