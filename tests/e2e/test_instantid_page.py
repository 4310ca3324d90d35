"""InstantID in a browser: its fields, the map of keypoints, a pose photo, the picture and its infotext."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.client import picture
from tests.e2e.page_driver import PATIENCE_MS, generate, open_person, small_job
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait

POSE = DrawnFace(200, 250, 180, person=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A person's photo, a pose photo, and a picture of nobody."""
    folder = tmp_path_factory.mktemp("people")
    portrait(1).save(folder / "person.png")
    Image.fromarray(face_picture(600, 600, [POSE])).save(folder / "pose.png")
    picture((90, 140, 60), (300, 200)).save(folder / "nobody.png")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def instantid(accordion):
    """The accordion with the intent InstantID, on a host that has the pair for its checkpoint."""
    return open_person(accordion, "InstantID", "ipadapter-with-net", "IdentityNet:")


def lit(image: Image.Image, point: tuple[float, float]) -> bool:
    """Whether the map has colour within two hundredths of that fraction of it."""
    x, y = round(point[0] * image.width), round(point[1] * image.height)
    near = max(1, image.width // 50)
    return bool(np.asarray(image)[max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1].any())


def test_the_fields_come_and_go_with_the_intent(instantid):
    page, unit = instantid.page, instantid.unit()
    for field in ("net_weight", "net_start", "net_end", "identity_net", "keypoints", "pose_choose"):
        assert page.is_visible(f"{unit}_{field}"), field
    assert not page.is_visible(f"{unit}_lora"), "InstantID has none"
    assert instantid.selected("identity_net") == "auto"
    assert "antelopev2" in instantid.text("adapter_line")
    instantid.choose_intent("Face")
    page.wait_for_selector(f"{unit}_net_weight", state="hidden", timeout=PATIENCE_MS)
    assert not page.is_visible(f"{unit}_pose_choose")


def test_the_preview_draws_the_persons_keypoints(instantid, files):
    instantid.choose(files["person"])
    drawn = instantid.keypoint_map("reference 1")
    assert drawn.width == drawn.height
    person = DrawnFace(256, 256, 512 * 0.45, 1)
    assert all(lit(drawn, (x / 512, y / 512)) for x, y in person.keypoints)
    assert not lit(drawn, (0.05, 0.05))


def test_a_pose_photo_gives_the_keypoints_until_it_is_removed(instantid, files):
    page, unit = instantid.page, instantid.unit()
    instantid.choose(files["person"])
    instantid.keypoint_map("reference 1")
    with page.expect_file_chooser(timeout=PATIENCE_MS) as chooser:
        page.click(f"{unit}_pose_choose")
    chooser.value.set_files(str(files["pose"]))
    drawn = instantid.keypoint_map("the pose photo")
    assert all(lit(drawn, (x / 600, y / 600)) for x, y in POSE.keypoints)
    assert page.is_visible(f"{unit}_preview img[alt='Pose photo']")
    page.click(f"{unit}_pose_remove")
    page.wait_for_selector(f"{unit}_preview img[alt='Pose photo']", state="detached", timeout=PATIENCE_MS)
    instantid.keypoint_map("reference 1")


def test_a_photo_of_nobody_is_told_of_and_stops_the_job(instantid, files):
    small_job(instantid.page)
    instantid.choose(files["nobody"])
    instantid.wait_for_text("preview", "No face")
    pixels, sentence = generate(instantid.page)
    assert not pixels
    assert "No face" in sentence


def test_one_press_makes_the_picture_and_its_infotext_restores_everything(instantid, files):
    page = instantid.page
    small_job(page)
    page.fill("#txt2img_prompt textarea", "a person")
    page.uncheck("#txt2img_ipadapter-visible-checkbox")
    plain, _ = generate(page)
    page.check("#txt2img_ipadapter-visible-checkbox")
    instantid.choose(files["person"])
    instantid.keypoint_map("reference 1")
    instantid.set_number("net_weight", 0.65)
    changed, info = generate(page)
    assert changed
    assert changed != plain
    record = info.replace("\\", "")
    assert re.search(r'"net":"[^"]*instant', record)
    assert '"keypoints":"reference"' in record

    page.reload()
    page.wait_for_selector("#txt2img_ipadapter-visible-checkbox", timeout=6 * PATIENCE_MS)
    page.fill("#txt2img_prompt textarea", info)
    page.click("#paste")
    instantid.wait_for_thumbnails(1)
    instantid.open()
    instantid.keypoint_map("reference 1")
    assert instantid.intent() == "InstantID"
    assert instantid.number("net_weight") == 0.65
    assert generate(page) == (changed, info)
    page.uncheck("#txt2img_ipadapter-visible-checkbox")
    assert generate(page)[0] == plain


def test_the_map_is_shown_beside_the_result(instantid, files):
    page = instantid.page
    small_job(page)
    instantid.choose(files["person"])
    instantid.keypoint_map("reference 1")
    page.check(f"{instantid.unit()}_show_map input")
    pixels, _ = generate(page)
    assert pixels
    page.wait_for_function(
        "() => new Set([...document.querySelectorAll('#txt2img_gallery img')].map(one => one.src)).size === 2",
        timeout=PATIENCE_MS,
    )
