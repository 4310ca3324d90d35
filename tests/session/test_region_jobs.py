"""Jobs whose units have regions: what acts, what is said, and what stops."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_ipadapter.library.errors import BadImageError, UnsupportedHostStateError
from lib_ipadapter.session.claims import WARNING_KEY
from lib_ipadapter.session.job import Job
from lib_ipadapter.units.images import digest
from lib_ipadapter.units.unit import Request, Unit
from tests.e2e.client import encoded, picture
from tests.session.fakes import FakeHost, FakeProcessing, call_unet, make_unet, services, write_models

RED, BLUE = (encoded(picture(colour)) for colour in ((220, 20, 20), (20, 20, 220)))
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


def start(host: FakeHost, folder: Path, *units: Unit, stop: bool = True, **attributes: Any) -> FakeProcessing:
    p = FakeProcessing(host)
    vars(p).update(attributes)
    p.job = Job(p, Request(True, units, from_page=False), services(host, folder, lambda: stop))
    p.job.announce()
    p.job.wrap_sample()
    return p


def only_masked(box: tuple[int, int, int, int]) -> dict[str, Any]:
    image = Image.new("RGB", (128, 128))
    return {"image_mask": image, "inpaint_full_res": True, "paste_to": box, "init_images": [image]}


def test_a_region_confines_a_unit(host: FakeHost, folder: Path) -> None:
    plain = call_unet(host.net)
    whole = start(host, folder, Unit(images=(RED,))).sample()[0]
    left = start(host, folder, Unit(images=(RED,), region="left")).sample()[0]
    assert not torch.equal(left, plain)
    assert not torch.equal(left, whole)
    both = [Unit(images=(RED,), region=half) for half in ("left", "right")]
    torch.testing.assert_close(start(host, folder, *both).sample()[0], whole, atol=1e-4, rtol=0)


def test_each_pass_has_its_own_canvas(host: FakeHost, folder: Path) -> None:
    """The second pass samples another size than the first: its mask is drawn anew, for that."""
    p = start(host, folder, Unit(images=(RED,), region="left"))
    first = p.sample()[0]
    p = start(host, folder, Unit(images=(RED,), region="left"))
    p.latent = torch.zeros(1, 4, 12, 12)
    with pytest.raises(UnsupportedHostStateError, match=r"Unit 1.*96x96.*64x64"):
        p.sample()
    p = start(host, folder, Unit(images=(RED,), region="left"))
    assert torch.equal(p.sample(passes=2)[2], first)


@pytest.mark.parametrize("latent", [None, torch.zeros(4)])
def test_a_pass_of_unknown_size_stops(host: FakeHost, folder: Path, latent: Any) -> None:
    with pytest.raises(UnsupportedHostStateError, match="how large it samples"):
        start(host, folder, Unit(images=(RED,), region="left"), latent=latent).sample()
    assert start(host, folder, Unit(images=(RED,)), latent=latent).sample()


def test_the_infotext_has_the_region_and_a_drawings_digest(host: FakeHost, folder: Path) -> None:
    drawing = Image.new("L", (64, 64))
    drawing.paste(255, (0, 0, 32, 64))
    sent = encoded(drawing)
    p = start(host, folder, Unit(images=(RED,), region=sent, feather=0.2), Unit(images=(BLUE,), region="right third"))
    assert sent[:60] not in p.extra_generation_params[KEY], "before it ran"
    p.sample()
    assert json.loads(p.extra_generation_params[KEY])["region"] == digest(base64.b64decode(sent))
    assert json.loads(p.extra_generation_params[KEY])["feather"] == 0.2
    assert json.loads(p.extra_generation_params["IP-Adapter unit 2"])["region"] == "right third"


def test_a_drawing_that_is_missing_stops_before_anything_is_sampled(host: FakeHost, folder: Path) -> None:
    with pytest.raises(BadImageError, match="unit 1: the region's picture"):
        start(host, folder, Unit(images=(RED,), region="sha256:" + "0" * 64)).sample()


def test_a_region_outside_of_what_is_inpainted_is_said(host: FakeHost, folder: Path) -> None:
    units = Unit(images=(RED,), region="left"), Unit(images=(BLUE,), region="right")
    p = start(host, folder, *units, **only_masked((80, 0, 48, 48)))
    sampled = p.sample()[0]
    assert KEY not in p.extra_generation_params
    assert "IP-Adapter unit 2" in p.extra_generation_params
    assert "Unit 1 did not act: no part of its region" in p.extra_generation_params[WARNING_KEY]
    # What was sampled lies in the right half altogether.
    assert torch.equal(sampled, start(host, folder, Unit(images=(BLUE,))).sample()[0])


def test_a_crop_that_the_host_keeps_to_itself_stops_units_with_a_region_alone(host: FakeHost, folder: Path) -> None:
    unknown = {**only_masked((0, 0, 64, 64)), "paste_to": None}
    with pytest.raises(UnsupportedHostStateError, match="does not say where"):
        start(host, folder, Unit(images=(RED,), region="left"), **unknown).sample()
    p = start(host, folder, Unit(images=(RED,)), **unknown)
    p.sample()
    assert WARNING_KEY not in p.extra_generation_params


def test_going_on_without_says_why(host: FakeHost, folder: Path) -> None:
    plain = call_unet(host.net)
    p = start(host, folder, Unit(images=(RED,), region="left"), stop=False, latent=None)
    assert torch.equal(p.sample()[0], plain)
    assert "how large" in p.extra_generation_params[WARNING_KEY]
