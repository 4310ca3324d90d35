"""From references to keys and values: written out a second time, and what is reused."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_ipadapter.encoders.clip_vision import load_vision_encoder, pixel_tensor
from lib_ipadapter.encoders.squares import to_squares
from lib_ipadapter.library.errors import BadImageError
from lib_ipadapter.session import features
from lib_ipadapter.session import prepare as prepare_module
from lib_ipadapter.session.faces import FacePool
from lib_ipadapter.session.features import EncoderPool, View, negative_pixels
from lib_ipadapter.session.prepare import PreparedUnit, prepare_unit, read_references
from lib_ipadapter.session.services import Services
from lib_ipadapter.units.images import digest
from lib_ipadapter.units.unit import Unit
from tests.e2e.client import encoded, picture
from tests.session.fakes import FakeHost, make_unet, services, write_models

RED, BLUE = encoded(picture((220, 20, 20))), encoded(picture((20, 20, 220)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_models(made, make_unet())
    return made


@pytest.fixture
def given(folder: Path) -> Services:
    return services(FakeHost(torch.nn.Identity()), folder)


def prepare(given: Services, unit: Unit) -> tuple[PreparedUnit, EncoderPool]:
    choice = given.models.choose(unit.adapter, unit.intent, ["SD1"])
    with EncoderPool(given.host, given.cache) as pool, FacePool(given.host, given.cache) as faces:
        return prepare_unit(1, unit, choice, pool=pool, faces=faces, store=given.store(), cache=given.cache), pool


def tokens(adapter: dict[str, torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
    """ImageProjModel of tencent-ailab/IP-Adapter: a linear layer to 4 tokens and a LayerNorm."""
    projected = pooled @ adapter["image_proj.proj.weight"].T + adapter["image_proj.proj.bias"]
    norm = adapter["image_proj.norm.weight"], adapter["image_proj.norm.bias"]
    return torch.nn.functional.layer_norm(projected.view(len(pooled), 4, 768), (768,), *norm)


def pooled_features(given: Services, pixels: torch.Tensor) -> torch.Tensor:
    file = given.models.choose("auto", "image", ["SD1"]).encoder
    found = load_vision_encoder(file.spec, file.path, device=torch.device("cpu"), dtype=torch.float32)
    pooled = found(pixels, want="pooled").pooled
    assert pooled is not None
    return pooled


def squares(given: Services, data: str, framing: str = "centre") -> torch.Tensor:
    side = given.models.choose("auto", "image", ["SD1"]).encoder.spec.image_size
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    return pixel_tensor(to_squares(image, side, framing))  # type: ignore[arg-type]


@pytest.mark.parametrize("uncond", ["official", "black", "zeros", "noise"])
def test_keys_and_values_of_prompt_and_negative_rows(given: Services, folder: Path, uncond: str) -> None:
    prepared, _ = prepare(given, Unit(images=(RED,), uncond=uncond))
    adapter = load_file(folder / "ip-adapter_sd15.safetensors")
    cond = tokens(adapter, pooled_features(given, squares(given, RED)))[0]
    side = given.models.choose("auto", "image", ["SD1"]).encoder.spec.image_size
    negative = {
        "official": lambda: tokens(adapter, torch.zeros(1, 48))[0],
        "zeros": lambda: torch.zeros_like(cond),
        "black": lambda: tokens(adapter, pooled_features(given, negative_pixels("black", side, 0)))[0],
    }.get(uncond)
    assert sorted(prepared.kv) == list(range(1, 33, 2))
    for key_id, pair in prepared.kv.items():
        for name, tensor in zip("kv", pair, strict=True):
            weight = adapter[f"ip_adapter.{key_id}.to_{name}_ip.weight"]
            torch.testing.assert_close(tensor[0], cond @ weight.T, atol=1e-5, rtol=1e-5)
            if negative is not None:
                torch.testing.assert_close(tensor[1], negative() @ weight.T, atol=1e-5, rtol=1e-5)
            else:
                assert not torch.equal(tensor[1], tensor[0])


def test_several_references_are_concatenated_or_averaged(given: Services) -> None:
    one, _ = prepare(given, Unit(images=(RED,)))
    two, _ = prepare(given, Unit(images=(BLUE,)))
    both, _ = prepare(given, Unit(images=(RED, BLUE)))
    mean, _ = prepare(given, Unit(images=(RED, BLUE), combine="average"))
    for key_id in one.kv:
        first, second = one.kv[key_id][0][0], two.kv[key_id][0][0]
        torch.testing.assert_close(both.kv[key_id][0][0], torch.cat([first, second]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean.kv[key_id][0][0], (first + second) / 2, atol=1e-5, rtol=1e-5)


def test_tiles_are_several_squares_of_one_reference(given: Services) -> None:
    wide = encoded(picture((10, 200, 90), size=(300, 100)))
    whole, _ = prepare(given, Unit(images=(wide,)))
    tiled, _ = prepare(given, Unit(images=(wide,), crop="tiles"))
    assert tiled.kv[1][0].shape[1] > whole.kv[1][0].shape[1]


def test_noise_is_the_same_for_the_same_references(given: Services, folder: Path) -> None:
    first, _ = prepare(given, Unit(images=(RED,), uncond="noise"))
    given.cache.clear()
    again, _ = prepare(given, Unit(images=(RED,), uncond="noise"))
    other, _ = prepare(given, Unit(images=(BLUE,), uncond="noise"))
    assert torch.equal(first.kv[1][0][1], again.kv[1][0][1])
    assert not torch.equal(first.kv[1][0][1], other.kv[1][0][1])


@pytest.mark.parametrize("amount", [0.0, 0.35, 1.0])
def test_so_much_noise_lies_between_the_official_negative_and_all_of_it(
    given: Services, folder: Path, amount: float
) -> None:
    """Of pooled features the official negative is zeros, so the amount multiplies the noise's features."""
    prepared, _ = prepare(given, Unit(images=(RED,), uncond="noise", uncond_noise=amount))
    side = given.models.choose("auto", "image", ["SD1"]).encoder.spec.image_size
    seed = hashlib.sha256(digest(base64.b64decode(RED)).encode()).hexdigest()[:15]
    noise = pooled_features(given, negative_pixels("noise", side, int(seed, 16)))
    adapter = load_file(folder / "ip-adapter_sd15.safetensors")
    expected = tokens(adapter, amount * noise)[0] @ adapter["ip_adapter.1.to_k_ip.weight"].T
    torch.testing.assert_close(prepared.kv[1][0][1], expected, atol=1e-5, rtol=1e-5)


def test_of_hidden_states_so_much_noise_is_in_the_pixels(given: Services) -> None:
    """Of hidden states the official negative is a pixel tensor of zeros, so the amount multiplies the pixels."""
    encoder = given.models.choose("auto", "image", ["SD1"]).require_encoder()
    view = View("hidden", encoder.spec.image_size, "centre")
    reference = read_references(Unit(images=(RED,)), given.store())
    seed = hashlib.sha256(reference[0].digest.encode()).hexdigest()[:15]
    net = load_vision_encoder(encoder.spec, encoder.path, device=torch.device("cpu"), dtype=torch.float32)
    with EncoderPool(given.host, given.cache) as pool:
        for amount in (0.0, 0.35, 1.0):
            found = pool.negative(encoder, view, "noise", reference, amount)
            pixels = amount * negative_pixels("noise", view.side, int(seed, 16))
            torch.testing.assert_close(found, net(pixels, want="hidden").hidden, atol=1e-5, rtol=1e-5)
        official = pool.negative(encoder, view, "official", reference)
        torch.testing.assert_close(pool.negative(encoder, view, "noise", reference, 0.0), official)


def test_what_was_encoded_is_not_encoded_again(given: Services) -> None:
    _, pool = prepare(given, Unit(images=(RED, BLUE)))
    assert pool.encoded == 2
    _, pool = prepare(given, Unit(images=(RED, BLUE), weight=0.2, start=0.5))
    assert pool.encoded == 0
    _, pool = prepare(given, Unit(images=(RED,), combine="average"))
    assert pool.encoded == 0, "the features of each picture are kept"
    _, pool = prepare(given, Unit(images=(RED,), crop="pad"))
    assert pool.encoded == 1


def test_what_is_kept_knows_the_square_that_was_encoded(given: Services) -> None:
    """One file under two names may be of two kinds (448 px), with the same bytes."""
    choice = given.models.choose("auto", "image", ["SD1"])
    large = replace(choice, spec=replace(choice.spec, image_size=prepare_module.LARGE_SIDE))
    kept = []
    for one in (choice, large, choice):
        with EncoderPool(given.host, given.cache) as pool, FacePool(given.host, given.cache) as faces:
            unit = Unit(images=(RED,))
            made = prepare_unit(1, unit, one, pool=pool, faces=faces, store=given.store(), cache=given.cache)
            kept.append(made.kv[1][0])
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_cached_keys_and_values_are_equal_to_the_first(given: Services) -> None:
    first, _ = prepare(given, Unit(images=(RED,)))
    kept = {key_id: (k.clone(), v.clone()) for key_id, (k, v) in first.kv.items()}
    again, _ = prepare(given, Unit(images=(RED,)))
    for key_id, (key, value) in again.kv.items():
        assert torch.equal(key, kept[key_id][0])
        assert torch.equal(value, kept[key_id][1])


def test_the_encoder_is_dropped_when_the_pool_closes(given: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    loaded: list[weakref.ref[object]] = []
    load = features.load_vision_encoder

    def loading(*args: object, **kwargs: object) -> object:
        encoder = load(*args, **kwargs)  # type: ignore[arg-type]
        loaded.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(features, "load_vision_encoder", loading)
    prepare(given, Unit(images=(RED,)))
    assert [encoder() for encoder in loaded] == [None]
    assert isinstance(given.host, FakeHost)
    assert given.host.room[0] > 0
    assert given.host.room[-1] == 0


def test_a_picture_that_cannot_be_read_is_named(given: Services) -> None:
    with pytest.raises(BadImageError, match="picture 2"):
        prepare(given, Unit(images=(RED, "not a picture")))
