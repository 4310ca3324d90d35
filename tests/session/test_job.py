"""A job without a WebUI: what it adds, what it says, how it stops, and that it leaves `p` and the UNet as they were."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_ipadapter.encoders.clip_vision import VisionEncoder
from lib_ipadapter.library.errors import BadUnitError, IPAdapterError, UnsupportedHostStateError, WrongBaseError
from lib_ipadapter.session.claims import WARNING_KEY
from lib_ipadapter.session.job import Job
from lib_ipadapter.units.unit import Request, Unit
from tests.e2e.client import encoded, picture
from tests.session.fakes import FakeHost, FakeProcessing, call_unet, make_unet, services, write_models

RED = encoded(picture((220, 20, 20)))
KEY = "IP-Adapter unit 1"


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return make_unet()


@pytest.fixture
def host(unet: torch.nn.Module) -> FakeHost:
    return FakeHost(unet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, unet: torch.nn.Module) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_models(made, unet)
    return made


def request(*units: Unit) -> Request:
    return Request(True, units or (Unit(images=(RED,)),), from_page=False)


def start(host: FakeHost, folder: Path, asked: Any = None, stop: bool = True) -> tuple[FakeProcessing, Job]:
    p = FakeProcessing(host)
    p.job = Job(p, asked or request(), services(host, folder, lambda: stop))
    p.job.announce()
    p.job.wrap_sample()
    return p, p.job


def hooks(unet: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())


def test_it_acts_while_sampling_and_not_after(host: FakeHost, folder: Path) -> None:
    before = call_unet(host.net)
    p, _ = start(host, folder)
    assert not torch.equal(p.sample()[0], before)
    assert hooks(host.net) == 0
    assert "sample" not in vars(p)
    assert torch.equal(call_unet(host.net), before)
    assert KEY in p.extra_generation_params
    assert p.comments == []


def test_wrapping_twice_is_wrapping_once(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder)
    once = p.sample()[0]
    job.wrap_sample()
    job.wrap_sample()
    assert torch.equal(p.sample()[0], once)
    assert "sample" not in vars(p)


def test_anothers_wrapper_stays_in_its_place(host: FakeHost, folder: Path) -> None:
    p = FakeProcessing(host)
    calls: list[str] = []
    original = p.sample

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    p.sample = theirs
    p.job = Job(p, request(), services(host, folder))
    p.job.wrap_sample()
    p.sample()
    assert calls == ["theirs"]
    assert p.sample is theirs


def test_a_copy_samples_itself(host: FakeHost, folder: Path) -> None:
    p, _ = start(host, folder)
    other = copy.copy(p)
    other.steps = 1
    other.job = Job(other, request(), services(host, folder))
    other.job.wrap_sample()
    assert len(other.sample()) == 1
    assert "sample" not in vars(other)
    assert len(p.sample()) == 2


def test_a_job_that_is_over_does_nothing_even_where_its_wrapper_is_still_held(host: FakeHost, folder: Path) -> None:
    plain = call_unet(host.net)
    p, job = start(host, folder)
    held = p.sample
    job.close()
    assert "sample" not in vars(p)
    assert torch.equal(held()[0], plain)


def test_every_pass_is_attached_afresh(host: FakeHost, folder: Path) -> None:
    p, _ = start(host, folder)
    results = p.sample(passes=2)
    assert torch.equal(results[0], results[2])
    assert hooks(host.net) == 0


def test_a_unet_that_changes_between_steps_is_followed(host: FakeHost, folder: Path) -> None:
    first, second = host.net, make_unet(seed=3)
    plain = call_unet(second)
    p, job = start(host, folder)
    step = job.before_step

    def switching(params: float) -> None:
        host.net = second if params else first
        step(params)

    job.before_step = switching  # type: ignore[method-assign]
    results = p.sample()
    assert not torch.equal(results[1], plain)
    assert hooks(first) == hooks(second) == 0


def test_an_error_from_the_arguments_is_raised_when_sampling_starts(host: FakeHost, folder: Path) -> None:
    p, _ = start(host, folder, BadUnitError("weight is 9."))
    with pytest.raises(BadUnitError, match="weight is 9"):
        p.sample()
    assert p.extra_generation_params == {}


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_failed_encoding_frees_the_encoder_with_the_error(
    host: FakeHost, folder: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool
) -> None:
    """Without waiting for a collection of garbage, which a GPU that is out of memory cannot."""
    towers: list[weakref.ref[object]] = []

    def encode(tower: object, *_args: Any, **_kwargs: Any) -> None:
        towers.append(weakref.ref(tower))
        raise BadUnitError("told to fail.") if foreseen else torch.cuda.OutOfMemoryError("told to fail")

    monkeypatch.setattr(VisionEncoder, "forward", encode)
    # The test runner keeps what is logged, tracebacks included.
    monkeypatch.setattr(logging.getLogger("ipadapter"), "disabled", True)
    gc.collect()
    gc.disable()
    try:
        p, _ = start(host, folder)
        with pytest.raises(IPAdapterError) as caught:
            p.sample()
        assert caught.value.__cause__ is not caught.value
        del caught
        assert towers
        assert towers[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_a_processing_object_goes_when_nobody_holds_it(host: FakeHost, folder: Path, fails: bool) -> None:
    p, job = start(host, folder, BadUnitError("told to fail.") if fails else request())
    p.sampler = Held()
    held = weakref.ref(p.sampler)
    gc.collect()
    gc.disable()
    try:
        if fails:
            with pytest.raises(BadUnitError):
                p.sample()
        else:
            p.sample()
            job.close()
        del p
        assert held() is None
    finally:
        gc.enable()


class Held:
    """Something that can be watched."""


def test_an_error_in_a_callback_is_raised_by_the_unet(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder)

    def fail(_params: Any) -> None:
        raise ZeroDivisionError("told to fail")

    job._reader.begin_step = fail  # type: ignore[method-assign]
    with pytest.raises(IPAdapterError, match="told to fail") as caught:
        p.sample()
    assert caught.value.status_code == 500
    assert hooks(host.net) == 0
    assert p.extra_generation_params == {}


def test_a_unit_without_a_step_in_its_window_is_not_claimed(host: FakeHost, folder: Path) -> None:
    p, _ = start(host, folder, request(Unit(images=(RED,), start=0.8, end=0.9)))
    p.sample()
    assert KEY not in p.extra_generation_params
    assert "did not act" in p.extra_generation_params[WARNING_KEY]


def test_an_interrupted_job_claims_what_acted_and_warns_of_nothing(host: FakeHost, folder: Path) -> None:
    p, _ = start(host, folder, request(Unit(images=(RED,)), Unit(images=(RED,), start=0.9)))
    host.stopped = True
    p.sample()
    assert list(p.extra_generation_params) == [KEY]


def test_a_unit_whose_checkpoint_never_came_is_told_so(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder)
    job._attach = lambda sampling: None  # type: ignore[method-assign]
    p.sample()
    assert KEY not in p.extra_generation_params
    assert "fits a checkpoint of this job that no step was sampled with" in p.extra_generation_params[WARNING_KEY]


def test_going_on_after_sampling_that_told_nobody(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder, stop=False)
    p.job = None
    assert torch.equal(p.sample()[0], call_unet(host.net))
    assert KEY not in p.extra_generation_params
    assert "Generated without image prompts" in p.extra_generation_params[WARNING_KEY]
    del job


def test_sampling_that_tells_nobody_is_an_error(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder)
    p.job = None
    with pytest.raises(UnsupportedHostStateError, match="samples in its own way"):
        p.sample()
    del job


def test_going_on_without_what_failed(host: FakeHost, folder: Path) -> None:
    units = (Unit(images=("sha256:" + "0" * 64,)), Unit(images=(RED,)))
    with pytest.raises(IPAdapterError):
        start(host, folder, request(*units))[0].sample()
    p, _ = start(host, folder, request(*units), stop=False)
    alone, _ = start(host, folder)
    assert torch.equal(p.sample()[0], alone.sample()[0])
    assert KEY not in p.extra_generation_params
    assert "IP-Adapter unit 2" in p.extra_generation_params
    assert "without unit 1" in p.extra_generation_params[WARNING_KEY]
    assert any("without unit 1" in comment for comment in p.comments)


def test_a_net_of_another_layout_is_refused(host: FakeHost, folder: Path) -> None:
    host.net = torch.nn.Linear(2, 2)
    with pytest.raises(WrongBaseError, match="no cross-attention"):
        start(host, folder)[0].sample()


def test_nothing_is_prepared_for_units_that_are_off(host: FakeHost, folder: Path) -> None:
    plain = call_unet(host.net)
    off = Request(False, (Unit(images=(RED,)),), from_page=True)
    for asked in (off, request(Unit(images=(RED,), weight=0.0)), request(Unit(images=(RED,), enabled=False))):
        p, _ = start(host, folder / "nothing here", asked)
        assert torch.equal(p.sample()[0], plain)
        assert p.extra_generation_params == {}


def test_where_errors_are_lost_the_batch_ends_with_the_sentence_instead(host: FakeHost, folder: Path) -> None:
    host.hiding = True
    p, job = start(host, folder, request(Unit(images=(RED,), adapter="nothing-like-it")))
    job.before_batch()
    assert p.prompts == []
    assert "nothing-like-it" in p.comments[0]
    assert KEY not in p.extra_generation_params


def test_where_errors_are_lost_a_job_that_can_run_runs(host: FakeHost, folder: Path) -> None:
    plain = FakeProcessing(host).sample()
    host.hiding = True
    p, job = start(host, folder)
    job.before_batch()
    assert p.prompts == ["a cat"]
    assert p.comments == []
    assert not torch.equal(p.sample()[0], plain[0])


def test_where_errors_are_shown_nothing_ends_early(host: FakeHost, folder: Path) -> None:
    p, job = start(host, folder, request(Unit(images=(RED,), adapter="nothing-like-it")))
    job.before_batch()
    assert p.prompts == ["a cat"]
    with pytest.raises(IPAdapterError, match="nothing-like-it"):
        p.sample()
