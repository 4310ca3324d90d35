"""When guidance is rescaled, by how much, and that nothing asks the host where no unit asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_ipadapter.core.guidance import rescale_guidance
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall
from lib_ipadapter.session.guidance import JobRescale, PassRescale
from lib_ipadapter.session.job import Job
from lib_ipadapter.units.infotext import units_from_infotext
from lib_ipadapter.units.unit import Unit, parse_args
from tests.e2e.client import encoded, picture
from tests.session.fakes import FakeHost, FakeProcessing, make_unet, services, write_models

RED = encoded(picture((220, 20, 20)))
BOTH = (COND, UNCOND)
NOISE = torch.Generator().manual_seed(1)
GUIDED, ALONE, STILL = (torch.randn(2, 4, 8, 8, generator=NOISE) for _ in range(3))


def rescaling(amounts: dict[int, float]) -> tuple[FakeHost, JobRescale, PassRescale]:
    host = FakeHost(torch.nn.Identity())
    job = JobRescale(host)  # type: ignore[arg-type]
    return host, job, PassRescale(host, None, amounts, job.ran)  # type: ignore[arg-type]


def test_of_the_units_that_act_in_a_step_the_largest_amount_counts() -> None:
    host, job, rescale = rescaling({1: 0.3, 2: 0.7})
    for acting, amount, ran in (({1}, 0.3, {1}), ({1, 2, 3}, 0.7, {1, 2}), ({2}, 0.7, {1, 2})):
        rescale.begin_step("params")
        rescale.note(UNetCall(BOTH, 0.0), acting)
        found = host.guided[0].rescale(GUIDED, ALONE, STILL)
        assert torch.equal(found, rescale_guidance(GUIDED, ALONE, STILL, amount))
        assert job.ran == ran
    assert host.guided[0].steps == ["params"] * 3


@pytest.mark.parametrize(("rows", "acting"), [((COND, COND), {1}), (BOTH, {2}), (BOTH, set())])
def test_a_step_that_is_not_guided_or_in_which_no_unit_asks_stays_as_it_is(rows: Any, acting: set[int]) -> None:
    host, job, rescale = rescaling({1: 0.5})
    rescale.begin_step(None)
    rescale.note(UNetCall(BOTH, 0.0), {1})
    rescale.begin_step(None)
    rescale.note(UNetCall(rows, 0.5), acting)
    assert host.guided[0].rescale(GUIDED, ALONE, STILL) is GUIDED
    assert not job.ran


def test_a_steps_calls_count_together_and_closing_lets_go_of_the_host() -> None:
    host, _, rescale = rescaling({1: 0.5})
    rescale.begin_step(None)
    rescale.note(UNetCall((UNCOND,), 0.0), {1})
    rescale.note(UNetCall((COND,), 0.0), {1})
    assert not torch.equal(host.guided[0].rescale(GUIDED, ALONE, STILL), GUIDED)
    rescale.close()
    rescale.close()
    assert host.guided[0].removed == 1


def test_without_an_amount_the_host_is_not_asked() -> None:
    host, _, rescale = rescaling({})
    rescale.begin_step(None)
    rescale.note(UNetCall(BOTH, 0.0), {1})
    rescale.close()
    assert host.guided == []


def guide_once(host: FakeHost) -> None:
    """What a host does after the UNet's calls of a step."""
    host.guided[-1].rescale(GUIDED, ALONE, STILL)


def test_a_job_claims_it_where_it_ran_and_says_where_it_did_not(tmp_path: Path) -> None:
    host = FakeHost(make_unet())
    write_models(tmp_path, host.net)
    given = services(host, tmp_path)
    for runs in (True, False):
        p = FakeProcessing(host)
        unit = Unit(images=(RED,), cfg_rescale=0.7)
        p.job = Job(p, parse_args([unit.to_dict()], 1), given)
        if runs:
            host.net.register_forward_hook(lambda *_: guide_once(host))
        p.job.wrap_sample()
        try:
            p.sample()
        finally:
            host.net._forward_hooks.clear()
        found = units_from_infotext(p.extra_generation_params).units[0].unit
        assert found.cfg_rescale == (0.7 if runs else 0.0)
        assert ("CFG rescale of unit 1 did nothing" in " ".join(p.comments)) is not runs
        assert host.guided[-1].removed == 1
