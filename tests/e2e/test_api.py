"""Image prompts through the WebUI's own API: what changes, what must not, and what is refused with a sentence."""

from __future__ import annotations

import json
import threading
import time

import pytest
from PIL import Image

from tests.e2e.client import SIDE, Client, Result, claimed, distance, encoded, picture

RED = encoded(picture((220, 20, 20)))
BLUE = encoded(picture((20, 20, 220)))
LONG = "a picture of " + ", ".join(f"thing {number}" for number in range(60))
VISIBLE = 0.5
"""Mean difference out of 255 above which a picture counts as changed; an unchanged one differs by exactly 0."""
ROUNDING = 0.6
"""Mean difference that float rounding may leave between two ways of computing one picture, after 8-bit rounding."""


@pytest.fixture(scope="module")
def webui(webui_url: str) -> Client:
    client = Client(webui_url)
    client.txt2img()  # the first picture after a start may still load things
    return client


@pytest.fixture(scope="module")
def plain(webui: Client) -> Result:
    return webui.txt2img()


def assert_plain_is_unchanged(webui: Client, plain: Result) -> None:
    assert distance(webui.txt2img(), plain) == 0


def test_a_reference_changes_the_picture_and_leaves_nothing_behind(webui, plain):
    red, blue = webui.txt2img({"images": [RED]}), webui.txt2img({"images": [BLUE]})
    assert distance(red, plain) > VISIBLE
    assert distance(red, blue) > VISIBLE
    assert distance(webui.txt2img({"images": [RED]}), red) == 0
    assert_plain_is_unchanged(webui, plain)


@pytest.mark.parametrize(
    "args",
    [
        [{"images": [RED], "weight": 0}],
        [{"images": [RED], "enabled": False}],
        [False, {"images": [RED]}],
        [False],
        [],
    ],
)
def test_off_is_off(webui, plain, args):
    result = webui.txt2img(*args) if args else webui.txt2img(alwayson_scripts={"IP-Adapter": {"args": []}})
    assert distance(result, plain) == 0
    assert "IP-Adapter" not in result.infotexts[0]


@pytest.mark.parametrize(
    "args",
    [
        [True, {"images": [RED]}],
        [[{"images": [RED]}]],
        [json.dumps({"images": [RED]})],
        [{"images": ["data:image/png;base64," + RED]}],
        [{"images": RED}],
    ],
)
def test_the_forms_of_a_unit_agree(webui, args):
    assert distance(webui.txt2img(*args), webui.txt2img({"images": [RED]})) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0.3},
        {"weight": -0.5},
        {"start": 0.5},
        {"end": 0.5},
        {"intent": "style"},
        {"intent": "composition"},
        {"intent": "style_composition"},
        {"uncond": "black"},
        {"uncond": "zeros"},
        {"uncond": "noise"},
        {"crop": "pad"},
        {"crop": "stretch"},
        {"crop": "tiles"},
        {"images": [RED, BLUE]},
        {"images": [RED, BLUE], "combine": "average"},
    ],
)
def test_every_field_acts(webui, plain, change):
    usual, changed = webui.txt2img({"images": [RED]}), webui.txt2img({"images": [RED], **change})
    # A late window may move a random checkpoint's picture by little; what does not act leaves it at exactly 0.
    assert distance(changed, usual) > 0
    assert distance(changed, plain) > 0


def test_units_add_up_in_any_order(webui):
    a, b = {"images": [RED], "weight": 0.5}, {"images": [BLUE], "weight": 0.7}
    both = webui.txt2img(a, b)
    assert distance(both, webui.txt2img(b, a)) <= ROUNDING
    assert distance(both, webui.txt2img(a)) > VISIBLE
    assert distance(both, webui.txt2img(b)) > VISIBLE
    four = webui.txt2img(a, b, {"images": [RED, BLUE], "weight": 0.2}, {"images": [BLUE], "weight": 0.1})
    assert distance(four, both) > 0


JOBS = {
    "batch 2x2": {"batch_size": 2, "n_iter": 2},
    "long prompt": {"prompt": LONG},
    "long negative": {"negative_prompt": LONG},
    "AND": {"prompt": "a cat AND a dog", "batch_size": 2},
    "AND of unequal lengths": {"prompt": f"a cat AND {LONG}"},
    "second order": {"sampler_name": "Heun"},
    "DDIM": {"sampler_name": "DDIM"},
    "adaptive": {"sampler_name": "DPM adaptive"},
    "CFG 1": {"cfg_scale": 1},
    "NGMS": {"s_min_uncond": 4.0},
    "hires": {
        "enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent",
        "hr_additional_modules": ["Use same choices"],
    },
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_job_types(webui, plain, job):
    changes = JOBS[job]
    before, prompted = webui.txt2img(**changes), webui.txt2img({"images": [RED]}, **changes)
    assert distance(prompted, before) > VISIBLE
    assert distance(webui.txt2img(**changes), before) == 0
    assert_plain_is_unchanged(webui, plain)


def test_a_batch_equals_its_pictures_alone(webui):
    batch = webui.txt2img({"images": [RED]}, batch_size=2, seed=5)
    assert batch.images is not None
    for offset, pixels in enumerate(batch.images[-2:]):
        alone = webui.txt2img({"images": [RED]}, seed=5 + offset)
        assert alone.images is not None
        assert abs(alone.images[0] - pixels).mean() <= ROUNDING


def test_split_calls_equal_joined_ones(webui):
    joined = webui.txt2img({"images": [RED]}, batch_size=2)
    with webui.options(batch_cond_uncond=False):
        split = webui.txt2img({"images": [RED]}, batch_size=2)
    assert distance(split, joined) <= ROUNDING


def test_img2img_and_inpainting(webui, plain):
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 20, 48, 44))
    jobs = {
        "img2img": {},
        "whole picture": {"mask": encoded(mask), "inpaint_full_res": False},
        "only masked": {"mask": encoded(mask), "inpaint_full_res": True, "inpaint_full_res_padding": 8},
    }
    for name, changes in jobs.items():
        webui.img2img(**changes)  # the first img2img after another job may round its encoder differently
        before, prompted = webui.img2img(**changes), webui.img2img({"images": [RED]}, **changes)
        assert distance(prompted, before) > 0, name
        assert distance(webui.img2img(**changes), before) == 0, name
    assert_plain_is_unchanged(webui, plain)


def test_the_infotext_says_what_ran(webui):
    result = webui.txt2img({"images": [RED], "weight": 0.65}, {"images": [BLUE], "enabled": False})
    record = claimed(result)
    assert record["weight"] == 0.65
    assert len(record["refs"][0]) == 64
    assert set(record["ran"]) == {"file", "hash", "encoder"}
    assert "unit 2" not in result.infotexts[0]
    assert "IP-Adapter unit 1" in result.info["extra_generation_params"]


def test_a_unit_that_no_step_reaches_is_not_claimed(webui, plain):
    result = webui.txt2img({"images": [RED], "start": 0.9, "end": 0.95})
    assert distance(result, plain) == 0
    assert "IP-Adapter unit 1" not in result.infotexts[0]
    assert "did not act" in result.infotexts[0]


BAD = {
    "unknown key": ([{"images": [RED], "weigth": 1}], "weight"),
    "out of range": ([{"images": [RED], "weight": 9}], "-1 to 3"),
    "text for a number": ([{"images": [RED], "weight": "much"}], "weight"),
    "no picture": ([{"weight": 1}], "picture"),
    "not a picture": ([{"images": [encoded(picture((1, 2, 3)))[:40]]}], "picture 1"),
    "not base64": ([{"images": ["!!!"]}], "picture 1"),
    "a path": ([{"images": ["/etc/passwd"]}], "picture 1"),
    "an address": ([{"images": ["http://127.0.0.1/a.png"]}], "picture 1"),
    "an id that is not here": ([{"images": ["sha256:" + "0" * 64]}], "not in"),
    "no such adapter": ([{"images": [RED], "adapter": "nothing-like-it"}], "nothing-like-it"),
    "too many units": ([{"images": [RED]}] * 30, "30"),
    "a bare number": ([7], "master switch"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_sentence_and_422(webui, plain, case):
    args, said = BAD[case]
    result = webui.txt2img(*args)
    assert result.status == 422, result.detail
    assert said in result.detail
    assert "Traceback" not in result.detail
    assert_plain_is_unchanged(webui, plain)


def test_interrupting_leaves_nothing_behind(webui, plain):
    job = threading.Thread(target=webui.txt2img, args=({"images": [RED]},), kwargs={"steps": 150})
    job.start()
    deadline = time.monotonic() + 60
    while job.is_alive() and time.monotonic() < deadline:
        time.sleep(0.3)
        webui.request("/sdapi/v1/interrupt", {})
    job.join(60)
    assert not job.is_alive()
    assert_plain_is_unchanged(webui, plain)


def test_routes(webui):
    status, version = webui.request("/ipadapter/v1/version")
    assert status == 200
    assert version["notice"] == ""
    status, schema = webui.request("/ipadapter/v1/schema")
    assert status == 200
    assert {"weight", "images", "adapter"} <= set(schema["properties"])
    status, models = webui.request("/ipadapter/v1/models")
    assert status == 200
    assert {file["status"] for file in models["files"]} >= {"supported", "not_adapter"}
