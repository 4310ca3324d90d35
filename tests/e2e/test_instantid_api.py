"""InstantID through the WebUI's own API: kinds of jobs, the keypoints' sources, what is refused with a sentence.

After every job the plain job is repeated: not one pixel may differ from the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.client import SIDE, Client, Result, claimed, distance, encoded, picture
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait

FACE = encoded(portrait(1))
WIDE = encoded(Image.fromarray(face_picture(900, 600, [DrawnFace(420, 280, 260, 1)])))
POSE = encoded(Image.fromarray(face_picture(600, 600, [DrawnFace(200, 250, 180, 3), DrawnFace(430, 300, 200, 2, 12)])))
NOBODY = encoded(picture((90, 140, 60)))
UNIT: dict[str, Any] = {"images": [FACE], "intent": "instantid"}
POINTS = [[20, 20], [40, 22], [30, 32], [22, 44], [40, 44]]
LONG = "a picture of " + ", ".join(f"thing {number}" for number in range(60))
VISIBLE = 0.5


def masked() -> str:
    """A mask whose crop holds the reference's keypoints at its place in the whole picture."""
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (12, 12, 52, 52))
    return encoded(mask)


JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "batch 2x2": {"batch_size": 2, "n_iter": 2},
    "long prompt": {"prompt": LONG},
    "AND": {"prompt": "a cat AND a dog", "batch_size": 2},
    "CFG 1": {"cfg_scale": 1},
    "second order": {"sampler_name": "Heun"},
    "hires": {
        "enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent",
        "hr_additional_modules": ["Use same choices"],
    },
    "img2img": {"route": "img2img"},
    "inpaint, whole picture": {"route": "img2img", "mask": masked(), "mask_blur": 0, "inpaint_full_res": False},
    "inpaint, only masked": {
        "route": "img2img", "mask": masked(), "mask_blur": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def webui(webui_url: str) -> Client:
    client = Client(webui_url, steps=2)
    client.txt2img()
    models = client.request("/ipadapter/v1/models")[1]
    if not any(pack["name"] == "antelopev2" and pack["found"] for pack in models["face_packs"]):
        pytest.skip("no face pack antelopev2")
    if not nets(client):
        pytest.skip("no IdentityNet")
    return client


@pytest.fixture(scope="module")
def plain(webui: Client) -> Result:
    return webui.txt2img()


@pytest.fixture(scope="module")
def usual(webui: Client, plain: Result) -> Result:
    """The plain job with the unit as it comes."""
    result = webui.txt2img(UNIT)
    assert distance(result, plain) > VISIBLE
    assert distance(webui.txt2img(UNIT), result) == 0
    return result


@pytest.fixture
def leaves_nothing(webui: Client, plain: Result) -> Iterator[None]:
    """After the test the plain job gives the plain picture."""
    yield
    assert distance(webui.txt2img(), plain) == 0


def nets(webui: Client) -> list[Path]:
    """The ControlNets that "auto" takes for IdentityNet by their names."""
    files = webui.request("/ipadapter/v1/models")[1]["files"]
    return [Path(file["path"]) for file in files if file["kind"] == "controlnet" and "instant" in file["name"].lower()]


def here(webui: Client) -> list[Path]:
    """Those files, where the WebUI's folders are on this machine."""
    found = nets(webui)
    if not all(path.is_file() for path in found):
        pytest.skip("the WebUI's model folders are not on this machine")
    return found


@contextmanager
def renamed(paths: list[Path], to: str) -> Iterator[None]:
    """These files under names in which "instant" is something else, for a while."""
    others = [path.with_name(path.name.replace("instant", to)) for path in paths]
    for path, other in zip(paths, others, strict=True):
        path.rename(other)
    try:
        yield
    finally:
        for path, other in zip(paths, others, strict=True):
            other.rename(path)


def run(webui: Client, *units: Any, route: str = "txt2img", **changes: Any) -> Result:
    return getattr(webui, route)(*units, **changes)


@pytest.mark.parametrize("job", JOBS)
def test_job_types(webui, plain, leaves_nothing, job):
    changes = JOBS[job]
    if "route" in changes:
        run(webui, **changes)  # the first img2img after another job may round its encoder differently
    before = run(webui, **changes)
    whole, attention = run(webui, UNIT, **changes), run(webui, {**UNIT, "net_weight": 0}, **changes)
    assert distance(whole, before) > VISIBLE / 2
    assert distance(whole, attention) > 0, "IdentityNet"
    assert distance(attention, before) > 0, "the attention"
    assert distance(run(webui, **changes), before) == 0
    assert claimed(whole)["ran"]["keypoints"] == "reference"
    assert "net" not in claimed(attention)["ran"]


@pytest.mark.parametrize("off", [{"net_weight": 0}, {"keypoints": "none"}, {"identity_net": "none"}], ids=str)
def test_without_identity_net_the_person_comes_through_attention_alone(webui, plain, usual, leaves_nothing, off):
    result = webui.txt2img({**UNIT, **off})
    assert distance(result, webui.txt2img({**UNIT, "net_weight": 0})) == 0
    assert distance(result, plain) > 0
    assert distance(result, usual) > 0
    assert {"net", "keypoints"}.isdisjoint(claimed(result)["ran"])


@pytest.mark.parametrize(
    "change",
    [{"net_weight": 0.4}, {"net_start": 0.5}, {"net_end": 0.5}, {"net_rows": "cond"}, {"weight": 0.3}, {"weight": 0}],
    ids=str,
)
def test_every_field_acts(webui, usual, leaves_nothing, change):
    assert distance(webui.txt2img({**UNIT, **change}), usual) > 0


def test_given_keypoints(webui, usual, leaves_nothing):
    pixels = webui.txt2img({**UNIT, "keypoints": POINTS})
    fractions = [[x / SIDE, y / SIDE] for x, y in POINTS]
    assert distance(webui.txt2img({**UNIT, "keypoints": fractions}), pixels) == 0
    assert distance(webui.txt2img({**UNIT, "keypoints": str(POINTS)}), pixels) == 0
    assert distance(pixels, usual) > 0
    assert claimed(pixels)["ran"]["keypoints"] == "given"


def test_a_pose_photo_and_the_choice_of_its_face(webui, usual, leaves_nothing):
    first, second = (webui.txt2img({**UNIT, "pose": [POSE], "pose_face": str(number)}) for number in (1, 2))
    assert distance(first, second) > 0
    assert distance(first, usual) > 0
    assert claimed(first)["ran"]["keypoints"] == "pose"
    assert distance(webui.txt2img({**UNIT, "pose": [POSE], "keypoints": "reference"}), usual) == 0
    assert distance(webui.txt2img({**UNIT, "pose": [POSE]}), second) == 0, "the larger one"


def places(image: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is drawn in a map, as fractions."""
    drawn = np.asarray(image.convert("RGB")).any(axis=-1)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return (
        columns[0] / image.width, rows[0] / image.height, columns[-1] / image.width, rows[-1] / image.height,
    )  # fmt: skip


def test_fits_lay_the_keypoints_differently(webui, leaves_nothing):
    drawn = {}
    for fit in ("crop", "pad", "stretch"):
        drawn[fit] = places(webui.txt2img({**UNIT, "images": [WIDE], "fit": fit, "show_map": True}).pictures[-1])
    heights = {fit: bottom - top for fit, (_, top, _, bottom) in drawn.items()}
    widths = {fit: right - left for fit, (left, _, right, _) in drawn.items()}
    assert heights["pad"] < heights["crop"]
    assert widths["stretch"] < widths["crop"]


def test_the_map_comes_back_on_request(webui, usual, leaves_nothing):
    result = webui.txt2img({**UNIT, "show_map": True})
    assert len(result.pictures) == 2
    assert np.array_equal(np.asarray(result.pictures[0]), np.asarray(usual.pictures[0]))
    left, top, right, bottom = places(result.pictures[1])
    # The portrait's face is in the middle and 0.45 wide.
    assert 0.25 < left < right < 0.75
    assert 0.25 < top < bottom < 0.75
    assert result.infotexts[-1].startswith("IP-Adapter keypoints: Unit 1, ")


def test_every_pass_has_its_own_map(webui, leaves_nothing):
    result = webui.txt2img({**UNIT, "show_map": True}, **JOBS["hires"])
    side = SIDE * 3 // 2
    assert [one.size for one in result.pictures] == [(side, side), (SIDE, SIDE), (side, side)]


def test_the_masked_part_shows_its_part_of_the_map(webui, leaves_nothing):
    result = run(webui, {**UNIT, "show_map": True}, **JOBS["inpaint, only masked"])
    whole = run(webui, {**UNIT, "show_map": True}, **JOBS["inpaint, whole picture"])
    inner, outer = places(result.pictures[-1]), places(whole.pictures[-1])
    assert inner[2] - inner[0] > outer[2] - outer[0]


def test_several_photos(webui, usual, leaves_nothing):
    pair = {**UNIT, "images": [FACE, encoded(portrait(1, tilt=8.0))]}
    mean, sequence = (webui.txt2img({**pair, "combine": how}) for how in ("mean", "sequence"))
    assert distance(mean, sequence) > 0
    assert distance(mean, usual) > 0


def test_beside_a_picture(webui, usual, leaves_nothing):
    both = webui.txt2img(UNIT, {"images": [NOBODY], "weight": 0.5})
    assert distance(both, usual) > 0


BAD = {
    "no face": ({"images": [NOBODY]}, "No face"),
    "no face in the pose photo": ({"pose": [NOBODY]}, "the pose photo"),
    "no pose photo": ({"keypoints": "pose"}, "has a pose photo; add one"),
    "a keypoint outside": ({"keypoints": [[SIDE + 1, 2], *POINTS[1:]]}, f"outside the picture of {SIDE}x{SIDE}"),
    "four keypoints": ({"keypoints": POINTS[:4]}, "4 points and not 5"),
    "words for keypoints": ({"keypoints": "here"}, "keypoints"),
    "a fit that is none": ({"fit": "squeeze"}, "fit"),
    "too strong": ({"net_weight": 9}, "0 to 2"),
    "no such IdentityNet": ({"identity_net": "nothing-like-it"}, "nothing-like-it"),
    "the adapter for IdentityNet": ({"identity_net": "ip-adapter_instant_id"}, "no ControlNet"),
    "two pose photos": ({"pose": [POSE, POSE]}, "pose"),
    "a path for a pose": ({"pose": ["/etc/passwd"]}, "path"),
}


def assert_refused(result: Result, said: str) -> None:
    assert result.status == 422, result.detail
    assert said in result.detail
    assert "Traceback" not in result.detail
    assert result.detail.rstrip().endswith((".", ")"))


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_sentence_and_422(webui, leaves_nothing, case):
    change, said = BAD[case]
    if case == "the adapter for IdentityNet":
        files = webui.request("/ipadapter/v1/models")[1]["files"]
        change = {"identity_net": next(file["name"] for file in files if file["kind"] == "instantid")}
    assert_refused(webui.txt2img({**UNIT, **change}), said)


def test_a_face_outside_the_canvas_is_refused_with_advice(webui, leaves_nothing):
    far = encoded(Image.fromarray(face_picture(900, 300, [DrawnFace(120, 150, 200, 3)])))
    assert_refused(webui.txt2img({**UNIT, "images": [far]}), '"pad"')
    assert distance(webui.txt2img({**UNIT, "images": [far], "fit": "pad"}), webui.txt2img()) > 0


def test_a_masked_part_without_the_face_is_refused(webui, leaves_nothing):
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (48, 48, 64, 64))
    job = {**JOBS["inpaint, only masked"], "mask": encoded(mask)}
    assert_refused(run(webui, UNIT, **job), "Only the masked part")


def test_the_missing_half_is_named_and_another_controlnet_is_taken_only_by_name(webui, usual, leaves_nothing):
    paths = here(webui)
    with renamed(paths, "other"):
        refused = webui.txt2img(UNIT)
        others = [path.name.replace("instant", "other") for path in paths]
        by_name = [webui.txt2img({**UNIT, "identity_net": name}) for name in others]
    assert_refused(refused, "other half")
    assert str(paths[0].parent) in refused.detail
    assert any(name in refused.detail for name in others)
    fitting = [result for result in by_name if result.status == 200]
    assert len(fitting) == 1
    assert distance(fitting[0], usual) == 0


def test_a_missing_face_pack_is_named(webui, leaves_nothing):
    pack = here(webui)[0].with_name("antelopev2")
    if not pack.is_dir():
        pytest.skip("the face pack is elsewhere")
    away = pack.parents[1] / "antelopev2-away"
    pack.rename(away)
    try:
        assert_refused(webui.txt2img(UNIT), "antelopev2")
        status, answer = webui.request("/ipadapter/v1/faces", {"image": FACE, "pack": "antelopev2"})
    finally:
        away.rename(pack)
    assert status == 422, answer
    assert "antelopev2" in answer["detail"]


def test_a_net_of_other_widths_is_refused_by_name_and_passed_over_by_auto(webui, usual, leaves_nothing):
    from tests.core.random_controlnets import SD15, as_published, narrow, random_controlnet, save_controlnet

    spec = replace(narrow(SD15), channels=(32, 32, 32, 32))
    path = here(webui)[0].with_name("a-narrow-instantid.safetensors")
    save_controlnet(path, as_published(spec, random_controlnet(spec)))
    try:
        assert_refused(webui.txt2img({**UNIT, "identity_net": path.name}), "32-32-32-32")
        assert distance(webui.txt2img(UNIT), usual) == 0
    finally:
        path.unlink()


def test_the_page_of_models_lists_both_halves(webui):
    kinds = [file["kind"] for file in webui.request("/ipadapter/v1/models")[1]["files"]]
    assert {"instantid", "controlnet"} <= set(kinds)
