"""A job's LoRAs without a WebUI: where they are found, when two are one, what the prompt has, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.library import companions
from lib_ipadapter.library.catalogue import by_id
from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.errors import AdapterFileError, UnsupportedHostStateError
from lib_ipadapter.library.files import fingerprint
from lib_ipadapter.session import loras as loras_module
from lib_ipadapter.session import ready as ready_module
from lib_ipadapter.session.claims import WARNING_KEY
from lib_ipadapter.session.job import Job
from lib_ipadapter.session.loras import TYPED, JobLoras, LoraRequest
from lib_ipadapter.session.services import Services
from lib_ipadapter.units.unit import Request, Unit
from tests.core.random_adapters import save_adapter
from tests.core.random_loras import companion_tensors, faceid_tensors, save_companion
from tests.e2e.client import encoded, picture
from tests.session.fakes import FakeHost, FakeProcessing, make_unet, services, write_models

RED = encoded(picture((220, 20, 20)))
NARROW = (8,) * 16


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return make_unet()


@pytest.fixture
def host(unet: torch.nn.Module) -> FakeHost:
    return FakeHost(unet)


@pytest.fixture
def served(host: FakeHost, tmp_path: Path) -> Services:
    return services(host, tmp_path)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return faceid_tensors(768, NARROW)


def request(path: Path, number: int = 1, strength: float = 0.6) -> LoraRequest:
    spec = inspect_file(path).adapter
    assert spec is not None
    return LoraRequest(number, strength, spec, path, fingerprint(path))


def faceid(folder: Path, tensors: dict[str, Tensor], name: str = "ip-adapter-faceid_sd15") -> Path:
    return save_adapter(folder / f"{name}.safetensors", tensors)


def without_lora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "_lora" not in name}


def prepared(served: Services, *requests: LoraRequest, warnings: list[str] | None = None) -> JobLoras:
    loras = JobLoras(served, ([] if warnings is None else warnings).append)
    for one in requests:
        loras.prepare(None, one, fits_now=True)
    return loras


def on(host: FakeHost) -> list[float]:
    return [lora.strength for lora in host.on]


def test_it_is_on_for_a_pass_and_off_afterwards(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    loras = prepared(served, request(faceid(tmp_path, tensors)))
    assert on(host) == []
    first = loras.put_on(None, [1], sampling=False)
    assert on(host) == [0.6]
    first.close()
    assert on(host) == []
    second = loras.put_on(None, [1], sampling=False)
    assert on(host) == [0.6]
    second.close()
    second.close()
    assert on(host) == []
    assert len(host.built) == 1, "built once for one UNet"


def test_a_unit_that_is_not_in_the_pass_brings_none(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    loras = prepared(served, request(faceid(tmp_path, tensors)))
    loras.put_on(None, [2], sampling=False)
    assert on(host) == []


def test_a_strength_of_0_reads_nothing(host: FakeHost, served: Services, tmp_path: Path) -> None:
    path = faceid(tmp_path, faceid_tensors(768, NARROW))
    asked = request(path, strength=0.0)
    path.unlink()
    prepared(served, asked).put_on(None, [1], sampling=False)
    assert on(host) == host.built == []


def test_the_same_lora_of_two_units_is_on_once_at_the_larger_strength(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """Two units of one file, and one of a copy whose other weights differ."""
    path = faceid(tmp_path, tensors)
    changed = tensors | {"image_proj.norm.bias": tensors["image_proj.norm.bias"] + 1}
    copied = faceid(tmp_path, changed, "another-name")
    loras = prepared(served, request(path, 1, 0.5), request(path, 2, 0.9), request(copied, 3, 0.7))
    loras.put_on(None, [1, 2, 3], sampling=False).close()
    placed = loras.put_on(None, [1, 3], sampling=False)
    assert on(host) == [0.7], "of the units that are in the pass"
    placed.close()
    loras.put_on(None, [1, 2, 3], sampling=False)
    assert on(host) == [0.9]
    digest = loras.told[2].split()[0]
    assert loras.told[2] == f"{digest} at 0.9"
    assert loras.told[1] == loras.told[3] == f"{digest} at 0.9, then {digest} at 0.7", "each pass is told of"


def test_different_loras_are_both_on(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    other = faceid(tmp_path, faceid_tensors(768, NARROW, seed=5), "other")
    loras = prepared(served, request(faceid(tmp_path, tensors)), request(other, 2, 0.3))
    loras.put_on(None, [1, 2], sampling=False)
    assert on(host) == [0.6, 0.3]
    assert len({lora.name for lora in host.on}) == 2


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_one_of_equal_weights_that_was_typed_is_not_put_on_again(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], alpha: float | None
) -> None:
    typed = save_companion(tmp_path / "lora" / "mine.safetensors", companion_tensors(tensors, "SD1", alpha=alpha))
    loras = prepared(served, request(faceid(tmp_path, tensors)))
    host.typed = [typed]
    loras.put_on(None, [1], sampling=False)
    assert on(host) == []
    assert loras.told == {1: TYPED}
    host.typed = []
    loras.put_on(None, [1], sampling=False)
    assert on(host) == [0.6], "the prompt of the next pass has it no more"


def test_others_that_were_typed_are_others(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    different = save_companion(tmp_path / "a.safetensors", companion_tensors(faceid_tensors(768, NARROW, 3), "SD1"))
    foreign = save_companion(tmp_path / "b.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)})
    broken = tmp_path / "c.safetensors"
    broken.write_bytes(b"\x00" * 100)
    early = save_companion(tmp_path / "d.safetensors", {"down_blocks_1_a_q_proj.lora_up.weight": torch.zeros(2, 2)})
    host.typed = [different, foreign, broken, early, tmp_path / "gone.safetensors"]
    loras = prepared(served, request(faceid(tmp_path, tensors)))
    loras.put_on(None, [1], sampling=False)
    assert on(host) == [0.6]


def test_typed_files_are_compared_once(host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor],
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    reads = counted(monkeypatch, "read_companion_lora")
    host.typed = [save_companion(tmp_path / "lora" / "mine.safetensors", companion_tensors(tensors, "SD1"))]
    for _ in range(2):
        loras = prepared(served, request(faceid(tmp_path, tensors)))
        for _ in range(2):
            loras.put_on(None, [1], sampling=False)
        loras.finish()
    assert len(reads) == 1
    assert host.built == [], "nor is anything built that the prompt has"


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(loras_module, name)

    def count(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(loras_module, name, count)
    return calls


def test_the_published_companion_is_known_by_its_hash(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its weights are not bit for bit those inside the adapter."""
    path = faceid(tmp_path, tensors)
    typed = save_companion(tmp_path / "renamed.safetensors", companion_tensors(faceid_tensors(768, NARROW, 3), "SD1"))
    known = by_id("faceid_sd15_lora")
    published = type(known)(**(vars(known) | {"bytes": typed.stat().st_size, "sha256": companions.file_sha256(typed)}))
    monkeypatch.setattr(loras_module, "companion_of", lambda adapter: published if adapter == path else None)
    host.typed = [typed]
    prepared(served, request(path)).put_on(None, [1], sampling=False)
    assert on(host) == []
    other = tmp_path / "longer.safetensors"
    other.write_bytes(typed.read_bytes() + b" ")
    host.typed = [other]
    prepared(served, request(path)).put_on(None, [1], sampling=False)
    assert on(host) == [0.6]


@pytest.mark.parametrize("name", ["ip-adapter-faceid_sd15_lora", "my-face_lora"])
def test_a_file_without_its_lora_takes_the_companion(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], name: str
) -> None:
    host.lora_dirs = [tmp_path / "Lora"]
    save_companion(tmp_path / "Lora" / "faces" / f"{name}.safetensors", companion_tensors(tensors, "SD1"))
    stripped = faceid(tmp_path, without_lora(tensors), "my-face")
    warnings: list[str] = []
    loras = prepared(served, request(stripped), warnings=warnings)
    loras.put_on(None, [1], sampling=False)
    assert on(host) == [0.6]
    assert warnings == []


def test_a_companion_under_another_name_is_known_by_its_bytes(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = save_companion(tmp_path / "Lora" / "x.safetensors", companion_tensors(tensors, "SD1"))
    known = by_id("faceid_sd15_lora")
    published = type(known)(**(vars(known) | {"bytes": typed.stat().st_size, "sha256": companions.file_sha256(typed)}))
    monkeypatch.setattr(loras_module, "published_companions", lambda kind, base: (published,))
    host.lora_dirs = [tmp_path / "Lora"]
    prepared(served, request(faceid(tmp_path, without_lora(tensors)))).put_on(None, [1], sampling=False)
    assert on(host) == [0.6]


def test_a_file_without_any_lora_stops_and_says_what_is_missing(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    host.lora_dirs = [tmp_path / "Lora"]
    with pytest.raises(AdapterFileError, match=r"ip-adapter-faceid_sd15_lora\.safetensors") as caught:
        prepared(served, request(faceid(tmp_path, without_lora(tensors))))
    assert str(tmp_path / "Lora") in str(caught.value)


@pytest.mark.parametrize("why", ["missing", "refused by the host"])
def test_where_the_user_goes_on_the_unit_runs_without_its_lora(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: Any) -> Any:
        raise UnsupportedHostStateError("The Lora extension is off.")

    served = served._replace(stop_on_failure=lambda: False)
    if why != "missing":
        monkeypatch.setattr(host, "build_lora", refuse)
    warnings: list[str] = []
    path = faceid(tmp_path, without_lora(tensors) if why == "missing" else tensors)
    loras = prepared(served, request(path), warnings=warnings)
    loras.put_on(None, [1], sampling=False)
    assert on(host) == []
    assert loras.told == {}
    (sentence,) = warnings
    assert "Unit 1 runs without its LoRA" in sentence


def test_kinds_that_were_published_without_one_say_nothing() -> None:
    assert not companions.published_companions("faceid_portrait", "SD1")
    assert not companions.published_companions("base", "SD1")
    names = {known.name for known in companions.published_companions("faceid_plus_v2", "SDXL")}
    assert names == {"ip-adapter-faceid-plusv2_sdxl_lora.safetensors"}


def test_a_published_adapter_is_told_by_length_and_short_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "renamed.bin"
    known = by_id("faceid_sdxl")
    assert known.bytes is not None
    with path.open("wb") as file:
        file.truncate(known.bytes)
    assert companions.companion_of(path) is None
    monkeypatch.setattr(companions, "short_hash", lambda _path: known.w8[0].digits)
    found = companions.companion_of(path)
    assert found is not None
    assert found.id == "faceid_sdxl_lora"


def test_an_early_companion_is_refused(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    host.lora_dirs = [tmp_path / "Lora"]
    early = {f"down_blocks_1_x_attn1_{x}_proj.lora_down.weight": torch.zeros(2, 2) for x in "qkv"}
    save_companion(tmp_path / "Lora" / "ip-adapter-faceid_sd15_lora.safetensors", early)
    with pytest.raises(AdapterFileError, match="early, broken upload"):
        prepared(served, request(faceid(tmp_path, without_lora(tensors))))


def test_the_next_job_reads_nothing(host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor],
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    reads = counted(monkeypatch, "read_adapter_lora")
    path, other = faceid(tmp_path, tensors), faceid(tmp_path, faceid_tensors(768, NARROW, 3), "other")
    for _ in range(2):
        prepared(served, request(path), request(path, 2)).finish()
    assert len(reads) == 1
    size = served.shelf.held_bytes
    prepared(served, request(other)).finish()
    assert served.shelf.held_bytes == size, "one job's LoRAs and no more"
    prepared(served).finish()
    assert served.shelf.held_bytes == 0, "a job without a LoRA gives the memory back"
    prepared(served, request(other)).finish()
    served.cache.set_cap(0)
    prepared(served, request(other)).finish()
    assert served.shelf.held_bytes == 0, "the user keeps no results"


def test_another_unet_gets_a_form_of_its_own(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    loras = prepared(served, request(faceid(tmp_path, tensors)))
    loras.put_on(None, [1], sampling=False).close()
    host.net = make_unet(seed=3)
    loras.put_on(None, [1], sampling=True).close()
    assert len(host.built) == 2


def test_where_one_cannot_be_put_on_none_is(
    host: FakeHost, served: Services, tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = faceid(tmp_path, faceid_tensors(768, NARROW, seed=5), "other")
    loras = prepared(served, request(faceid(tmp_path, tensors)), request(other, 2))
    build, host.net = host.build_lora, make_unet(seed=3)

    def fail(p: Any, name: str, weights: Any) -> Any:
        if len(host.built) == 3:
            raise UnsupportedHostStateError("told to fail.")
        return build(p, name, weights)

    monkeypatch.setattr(host, "build_lora", fail)
    with pytest.raises(UnsupportedHostStateError):
        loras.put_on(None, [1, 2], sampling=False)
    assert on(host) == []


# -- in a job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, unet: torch.nn.Module) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_models(made, unet)
    return made


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unet: torch.nn.Module) -> dict[str, float]:
    """Units ask for the LoRA of a FaceID file beside their own adapter, at `strength`."""
    path = faceid(tmp_path, faceid_tensors(768, [layer.width for layer in find_cross_attention(unet)]))
    strength = {"strength": 0.6}
    monkeypatch.setattr(ready_module, "lora_request",
                        lambda unit: request(path, unit.number, strength["strength"]))  # fmt: skip
    return strength


def start(host: FakeHost, folder: Path, unit: Unit | None = None, stop: bool = True) -> FakeProcessing:
    p = FakeProcessing(host)
    asked = Request(True, (unit or Unit(images=(RED,)),), from_page=False)
    p.job = Job(p, asked, services(host, folder, lambda: stop))
    p.job.announce()
    p.job.wrap_sample()
    return p


def told(p: FakeProcessing) -> Any:
    return json.loads(p.extra_generation_params["IP-Adapter unit 1"])["ran"].get("lora")


def seen_on(host: FakeHost, p: FakeProcessing, passes: int = 1) -> list[list[float]]:
    """What is on in each step."""
    seen: list[list[float]] = []
    handle = host.net.register_forward_pre_hook(lambda *_: seen.append(on(host)))
    try:
        p.sample(passes)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_on_in_every_step_of_every_pass(host: FakeHost, folder: Path, asking: Any, passes: int) -> None:
    p = start(host, folder, Unit(images=(RED,), end=0.5))
    assert seen_on(host, p, passes) == [[0.6]] * 2 * passes
    assert on(host) == []
    assert told(p).endswith(" at 0.6")


def test_a_weight_of_0_brings_none(host: FakeHost, folder: Path, asking: Any) -> None:
    assert seen_on(host, start(host, folder, Unit(images=(RED,), weight=0.0))) == [[], []]
    assert host.built == []


def test_a_strength_of_0_brings_none(host: FakeHost, folder: Path, asking: Any) -> None:
    asking["strength"] = 0.0
    p = start(host, folder)
    assert seen_on(host, p) == [[], []]
    assert told(p) is None


def test_one_that_was_typed_is_said_so(
    host: FakeHost, folder: Path, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobLoras, "_is_typed", lambda self, wanted: True)
    p = start(host, folder)
    assert seen_on(host, p) == [[], []]
    assert told(p) == TYPED


def test_an_error_takes_it_off(host: FakeHost, folder: Path, asking: Any) -> None:
    p = start(host, folder)

    def fail(*_: Any) -> None:
        assert on(host) == [0.6]
        raise RuntimeError("told to fail")

    handle = host.net.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="told to fail"):
            p.sample()
    finally:
        handle.remove()
    assert on(host) == []


def test_a_lora_that_cannot_be_built_stops_the_job_before_sampling(
    host: FakeHost, folder: Path, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise UnsupportedHostStateError("The Lora extension is off.")

    monkeypatch.setattr(host, "build_lora", fail)
    with pytest.raises(UnsupportedHostStateError, match="unit 1: The Lora extension is off"):
        start(host, folder).sample()
    p = start(host, folder, stop=False)
    p.sample()
    assert "Unit 1 runs without its LoRA" in p.extra_generation_params[WARNING_KEY]
    assert told(p) is None


@pytest.mark.parametrize("steps", [1, 2])
def test_a_lora_that_the_host_did_not_apply(host: FakeHost, folder: Path, asking: Any, steps: int) -> None:
    host.lora_failure = "The host did not merge it."
    p = start(host, folder)
    p.steps = steps
    with pytest.raises(UnsupportedHostStateError, match="did not merge"):
        p.sample()
    assert on(host) == []
    p = start(host, folder, stop=False)
    p.steps = steps
    p.sample()
    assert "did not merge" in p.extra_generation_params[WARNING_KEY]
    assert told(p) is None, "the unit acted, its LoRA did not"


def test_going_on_after_a_failure_goes_on_without_it(host: FakeHost, folder: Path, asking: Any) -> None:
    p = start(host, folder, stop=False)

    def fail(_params: Any) -> None:
        raise ZeroDivisionError("told to fail")

    p.job._reader.begin_step = fail
    assert seen_on(host, p) == [[], []]
