"""InstantID's half of image attention: which adapter the intent takes, and which tokens photos of a person become."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import torch

from lib_ipadapter.core.adapter import load_adapter
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.weighting import layer_weights
from lib_ipadapter.library.errors import AdapterNotFoundError, BadUnitError, FacePackError
from lib_ipadapter.session.faces import FacePool, mean_embedding
from lib_ipadapter.session.features import EncoderPool, Reference
from lib_ipadapter.session.prepare import PreparedUnit, prepare_unit
from lib_ipadapter.session.services import Services
from lib_ipadapter.units.face_choice import FaceChoice
from lib_ipadapter.units.images import digest
from lib_ipadapter.units.unit import Unit
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.face_models import write_face_pack
from tests.session.fakes import FakeHost, make_unet, services
from tests.session.test_faces import ANNA, BERT, check_rows

ADAPTER = "ip-adapter_instant_id_sd15.safetensors"
SIZES = {"dim": 64, "heads": 1, "depth": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    widths = [layer.width for layer in find_cross_attention(make_unet())]
    save_adapter(tmp_path / ADAPTER, random_adapter_tensors("instantid", 768, widths, **SIZES))
    save_adapter(
        tmp_path / "ip-adapter-faceid_sd15.safetensors", random_adapter_tensors("faceid", 768, widths, seed=3)
    )
    write_face_pack(tmp_path / "antelopev2", "antelopev2")
    write_face_pack(tmp_path / "buffalo_l")
    return tmp_path


@pytest.fixture
def given(folder: Path) -> Services:
    return services(FakeHost(torch.nn.Identity()), folder)


def prepare(given: Services, *images: str, **fields: object) -> PreparedUnit:
    unit = Unit(intent="instantid", images=images, **fields)  # type: ignore[arg-type]
    choice = given.models.choose(unit.adapter, unit.intent, ["SD1"])
    with EncoderPool(given.host, given.cache) as pool, FacePool(given.host, given.cache) as faces:
        return prepare_unit(1, unit, choice, pool=pool, faces=faces, store=given.store(), cache=given.cache)


def embedding(given: Services, data: str) -> torch.Tensor:
    """The raw antelopev2 embedding (512,) of a picture's face."""
    content = base64.b64decode(data)
    with FacePool(given.host, given.cache) as faces:
        pack = given.models.face_pack("antelopev2")
        return faces.read(pack, Reference("picture 1", digest(content), content), FaceChoice()).embedding


def project(given: Services, faces: torch.Tensor) -> torch.Tensor:
    """The adapter's own resampler on faces (1, n, 512): (tokens, width)."""
    choice = given.models.choose("auto", "instantid", ["SD1"])
    with torch.no_grad():
        return load_adapter(choice.spec, choice.path).projector(faces)[0]


def test_the_intent_takes_an_instantid_adapter_and_the_others_leave_it_alone(given: Services, folder: Path) -> None:
    choice = given.models.choose("auto", "instantid", ["SD1"])
    assert (choice.spec.kind, choice.sources) == ("instantid", "antelopev2")
    assert given.models.choose("auto", "face", ["SD1"]).spec.kind == "faceid"
    assert given.models.choose(ADAPTER, "face", ["SD1"]).spec.kind == "instantid", "unless the user says so"
    assert given.models.knows_identity("auto", "instantid", ["SD1"])
    (folder / ADAPTER).unlink()
    given.models.refresh()
    with pytest.raises(AdapterNotFoundError, match=r"InstantID and SD1\.5"):
        given.models.choose("auto", "instantid", ["SD1"])


def test_without_its_face_pack_the_pack_is_named(given: Services, folder: Path) -> None:
    for file in (folder / "antelopev2").iterdir():
        file.unlink()
    with pytest.raises(FacePackError, match="antelopev2"):
        given.models.choose("auto", "instantid", ["SD1"])


def test_the_raw_embedding_becomes_tokens_and_zeros_through_the_resampler_the_negative(
    given: Services, folder: Path
) -> None:
    raw = embedding(given, ANNA)
    assert abs(float(raw.norm()) - 1) > 0.1, "this recogniser's embeddings are not of unit length"
    weights = random_adapter_tensors(
        "instantid", 768, [layer.width for layer in find_cross_attention(make_unet())], **SIZES
    )
    un = project(given, torch.zeros(1, 1, 512))
    check_rows(prepare(given, ANNA), weights, project(given, raw[None, None]), un)
    assert float(un.abs().max()) > 0.1, "projected zeros are no zeros"
    both = torch.stack([raw, embedding(given, BERT)])
    check_rows(prepare(given, ANNA, BERT), weights, project(given, mean_embedding(both)[None]), un)


def test_several_photos_may_enter_the_resampler_as_a_sequence(given: Services) -> None:
    weights = random_adapter_tensors(
        "instantid", 768, [layer.width for layer in find_cross_attention(make_unet())], **SIZES
    )
    both = torch.stack([embedding(given, ANNA), embedding(given, BERT)])
    prepared = prepare(given, ANNA, BERT, combine="sequence")
    assert prepared.kv[1][0].shape[1] == 16
    check_rows(prepared, weights, project(given, both[None]), project(given, torch.zeros(1, 2, 512)))
    alone = prepare(given, ANNA, combine="sequence")
    torch.testing.assert_close(alone.kv[1][0], prepare(given, ANNA).kv[1][0])
    noise = prepare(given, ANNA, BERT, combine="sequence", uncond="noise")
    assert not torch.allclose(noise.kv[1][0][1], prepared.kv[1][0][1])
    torch.testing.assert_close(noise.kv[1][0][0], prepared.kv[1][0][0])


def noise_of(data: str) -> torch.Tensor:
    """What `torch.rand` gives (1, 512) from a generator of its own that the reference's digest seeds."""
    seed = hashlib.sha256(digest(base64.b64decode(data)).encode()).hexdigest()[:15]
    return torch.rand(1, 512, generator=torch.Generator().manual_seed(int(seed, 16)))


@pytest.mark.parametrize("amount", [0.0, 0.35, 1.0])
def test_negative_noise_is_so_much_uniform_noise_before_the_resampler(given: Services, amount: float) -> None:
    """ComfyUI_InstantID, InstantID.py, ApplyInstantID: `noise * torch.rand_like(embedding)` is the negative."""
    weights = random_adapter_tensors(
        "instantid", 768, [layer.width for layer in find_cross_attention(make_unet())], **SIZES
    )
    state = torch.random.get_rng_state()
    prepared = prepare(given, ANNA, uncond="noise", uncond_noise=amount)
    assert torch.equal(torch.random.get_rng_state(), state), "the job's own noise is not touched"
    expected = project(given, amount * noise_of(ANNA)[None])
    check_rows(prepared, weights, project(given, embedding(given, ANNA)[None, None]), expected)
    assert prepared.tokens is not None
    torch.testing.assert_close(prepared.tokens[1], expected, atol=1e-5, rtol=1e-5)
    if amount == 0.0:
        torch.testing.assert_close(prepared.kv[1][0][1], prepare(given, ANNA).kv[1][0][1])


def test_a_sequence_sees_the_same_noise_as_often_as_there_are_faces(given: Services) -> None:
    weights = random_adapter_tensors(
        "instantid", 768, [layer.width for layer in find_cross_attention(make_unet())], **SIZES
    )
    prepared = prepare(given, ANNA, ANNA, combine="sequence", uncond="noise", uncond_noise=0.35)
    seed = hashlib.sha256((digest(base64.b64decode(ANNA)) * 2).encode()).hexdigest()[:15]
    noise = 0.35 * torch.rand(1, 512, generator=torch.Generator().manual_seed(int(seed, 16)))
    both = embedding(given, ANNA).expand(1, 2, 512)
    check_rows(prepared, weights, project(given, both), project(given, noise.expand(1, 2, 512)))


def test_the_amount_changes_nothing_where_the_negative_is_no_noise(given: Services) -> None:
    official = prepare(given, ANNA)
    assert torch.equal(prepare(given, ANNA, uncond_noise=0.35).kv[1][0], official.kv[1][0])


def test_a_sequence_is_refused_for_projectors_that_know_none(given: Services) -> None:
    with pytest.raises(BadUnitError, match="sequence"):
        prepare(given, ANNA, BERT, combine="sequence", adapter="ip-adapter-faceid_sd15")


def test_all_layers_have_the_weight() -> None:
    layers = find_cross_attention(make_unet())
    assert layer_weights("instantid", layers, 0.8) == {layer.key_id: 0.8 for layer in layers}
