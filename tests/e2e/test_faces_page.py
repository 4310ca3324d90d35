"""A person from a photo, in a browser: what is shown of the faces, how another one is chosen, that choices survive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.client import picture
from tests.e2e.page_driver import PATIENCE_MS, generate, need_adapter, open_person, small_job
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait

GROUP = (DrawnFace(200, 300, 220, person=1), DrawnFace(500, 180, 130, person=2), DrawnFace(740, 420, 100, person=3))
POINTS = [f"@{face.x / 900:.2f},{face.y / 600:.2f}" for face in GROUP]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of three, one of one, and one without a face."""
    folder = tmp_path_factory.mktemp("faces")
    Image.fromarray(face_picture(900, 600, GROUP)).save(folder / "group.png")
    portrait(1).save(folder / "one.png")
    portrait(4, 320).save(folder / "other.png")
    picture((90, 140, 60), (300, 200)).save(folder / "none.png")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def faces(accordion):
    """The accordion with the intent Face, on a host that has an adapter for faces."""
    return open_person(accordion, "Face", "ipadapter-with-faces", "face pack")


def box(accordion, place: int) -> str:
    return f"{accordion.unit()}_preview .ipadapter-face-box >> nth={place}"


def rounded(text: str) -> str:
    """Points to hundredths: where a detector puts a box's edge is its own affair."""
    return re.sub(r"\d\.\d+", lambda number: f"{float(number[0]):.2f}", text)


def test_the_fields_of_a_face_are_shown_with_the_intent_and_with_a_face_adapter(accordion):
    need_adapter(accordion)
    page, field, score = accordion.page, f"{accordion.unit()}_face", f"{accordion.unit()}_score"
    assert not page.is_visible(field)
    assert page.is_visible(score), "other pictures' results can be scored too"
    assert accordion.face_text() == "largest"
    accordion.choose_intent("Face")
    page.wait_for_selector(field, state="visible", timeout=PATIENCE_MS)
    assert page.is_visible(f"{accordion.unit()}_lora")
    assert page.is_visible(score)
    accordion.choose_intent("Style + composition")
    page.wait_for_selector(field, state="hidden", timeout=PATIENCE_MS)
    assert accordion.number("lora") == 0.6
    assert page.is_visible(score)
    page.click(f"{accordion.unit()}_adapter input")
    names = page.eval_on_selector_all("ul.options li", "all => all.map(one => one.innerText.trim())")
    of_faces = [name.lstrip("✓ \n") for name in names if "faceid" in name]
    if of_faces:
        page.click(f"ul.options li:has-text('{of_faces[0]}')")
        page.wait_for_selector(field, state="visible", timeout=PATIENCE_MS)


def test_the_line_says_what_a_face_adapter_uses_and_its_licence(faces):
    assert re.search("with the face pack buffalo_l", faces.text("adapter_line"))
    assert "LoRA" in faces.text("adapter_line")
    assert "non-commercial research" in faces.text("adapter_line")
    faces.choose_intent("Style + composition")
    faces.wait_for_text("adapter_line", "per square")
    assert "non-commercial" not in faces.text("adapter_line")


def test_a_crowds_small_boxes_have_the_number_alone_and_the_score_in_the_tooltip(faces, tmp_path):
    crowd = [DrawnFace(x, 100, 50, person=1) for x in range(100, 1600, 150)]
    Image.fromarray(face_picture(1700, 200, crowd)).save(tmp_path / "crowd.png")
    faces.choose(tmp_path / "crowd.png")
    faces.wait_for_faces(len(crowd))
    assert faces.page.inner_text(f"{box(faces, 2)} >> css=span") == "3"
    assert re.fullmatch(r"Face 3 of 10, score 0\.\d\d", faces.page.get_attribute(box(faces, 2), "title"))


def test_every_face_is_shown_and_the_largest_counts(faces, files):
    faces.choose(files["group"])
    faces.wait_for_faces(3)
    assert [pressed for _, pressed in faces.faces()] == [True, False, False]
    assert re.match(r"Face 1 of 3, score 0\.\d\d$", faces.faces()[0][0])
    labels = f"{faces.unit()}_preview .ipadapter-face-box > span"
    written = faces.page.eval_on_selector_all(labels, "all => all.map(one => one.innerText)")
    assert [re.sub(r"\d\d$", "", text) for text in written] == ["1 · 0.", "2 · 0.", "3 · 0."]
    colours = "all => all.map(one => [one, one.firstElementChild].map(part => getComputedStyle(part).color))"
    assert all(number == score for number, score in faces.page.eval_on_selector_all(labels, colours))
    assert [crop.size for crop in faces.crops()] == [(224, 224)]
    assert "Picture 1, 3 faces, number 1 counts" in faces.page.inner_text(f"{faces.unit()}_preview")
    assert faces.page.locator(f"{faces.unit()}_preview circle").count() == 15


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_another_face_counts_when_it_is_chosen(faces, files, how):
    page = faces.page
    faces.choose(files["group"])
    faces.wait_for_faces(3)
    before = faces.crops()[0].tobytes()
    if how == "click":
        page.click(box(faces, 1))
    else:
        page.focus(box(faces, 1))
        page.keyboard.press("Enter")
    page.wait_for_selector(f"{faces.unit()}_preview .ipadapter-face-chosen[aria-label^='Face 2 of 3']")
    faces.wait_for_faces(3)
    assert rounded(faces.face_text()) == POINTS[1]
    assert faces.crops()[0].tobytes() != before
    if how == "keyboard":
        page.wait_for_function(
            "document.activeElement.getAttribute('aria-label')?.startsWith('Face 2 of 3')", timeout=PATIENCE_MS
        )


def test_a_click_beside_the_faces_chooses_the_nearest(faces, files):
    page, shown = faces.page, f"{faces.unit()}_preview .ipadapter-face-picture"
    faces.choose(files["group"])
    faces.wait_for_faces(3)
    page.wait_for_selector(shown)  # drawn, and laid out
    width, height = page.eval_on_selector(shown, "shown => [shown.offsetWidth, shown.offsetHeight]")
    page.click(shown, position={"x": 0.96 * width, "y": 0.9 * height})
    page.wait_for_selector(f"{faces.unit()}_preview .ipadapter-face-chosen[aria-label^='Face 3 of 3']")
    assert re.fullmatch(r"@0\.9[567]\d*,0\.(89|90|91)\d*", faces.face_text())


def test_a_choice_stays_with_its_picture(faces, files):
    page, strip = faces.page, f"{faces.unit()}_strip"
    faces.choose(files["group"])
    faces.wait_for_faces(3)
    page.click(box(faces, 2))
    faces.wait_for_faces(3)
    faces.choose(files["one"], files["other"])
    faces.wait_for_faces(5)
    assert rounded(faces.face_text()) == f"{POINTS[2]}; largest; largest"
    page.click(f"{strip} [aria-label='Remove reference 2']")
    faces.wait_for_faces(4)
    assert rounded(faces.face_text()) == f"{POINTS[2]}; largest"
    page.click(f"{strip} [aria-label='Remove reference 1']")
    faces.wait_for_faces(1)
    faces.wait_for_face_text("largest")
    page.click(box(faces, 0))
    page.wait_for_function("s => document.querySelector(s).value.startsWith('@')", arg=f"{faces.unit()}_face textarea")
    faces.choose(files["group"])
    faces.wait_for_faces(4)
    page.click(f"{strip} .ipadapter-clear")
    faces.wait_for_face_text("largest")


def test_a_choice_for_all_pictures_stays_one(faces, files):
    faces.page.fill(f"{faces.unit()}_face textarea", "best")
    faces.choose(files["group"], files["one"])
    faces.wait_for_faces(4)
    faces.page.click(f"{faces.unit()}_strip [aria-label='Remove reference 1']")
    faces.wait_for_faces(1)
    assert faces.face_text() == "best"


def test_a_picture_without_a_face_and_a_wrong_choice_are_told_of(faces, files):
    faces.choose(files["one"], files["none"])
    faces.wait_for_faces(1)
    faces.wait_for_text("preview", "No face was found in picture 2")
    errors = faces.page.eval_on_selector_all(
        f"{faces.unit()}_preview .ipadapter-error", "all => all.map(one => one.textContent)"
    )
    assert len(errors) == 1
    faces.page.fill(f"{faces.unit()}_face textarea", "third")
    faces.wait_for_text("preview", "it must be largest, best")


def test_boxes_lie_on_the_faces_whatever_the_pictures_shape(faces, tmp_path):
    shapes = {"wide": (1600, 400, DrawnFace(1400, 200, 200)), "tall": (400, 1600, DrawnFace(200, 1400, 200))}
    for name, (width, height, drawn) in shapes.items():
        Image.fromarray(face_picture(width, height, [drawn])).save(tmp_path / f"{name}.png")
        faces.choose(tmp_path / f"{name}.png")
    faces.wait_for_faces(2)
    measured = faces.page.eval_on_selector_all(
        f"{faces.unit()}_preview .ipadapter-face-picture",
        """all => all.map(picture => {
            const [image, box] = ["img", ".ipadapter-face-box"].map(one => picture.querySelector(one)
                .getBoundingClientRect());
            return [image.width / image.height, (box.x + box.width / 2 - image.x) / image.width,
                    (box.y + box.height / 2 - image.y) / image.height];
        })""",
    )
    for (width, height, drawn), (shape, x, y) in zip(shapes.values(), measured, strict=True):
        assert shape == pytest.approx(width / height, rel=0.05)
        assert (x, y) == pytest.approx((drawn.x / width, drawn.y / height), abs=0.02)


def test_photos_of_different_people_are_told_of(faces, files):
    faces.choose(files["one"], files["other"])
    faces.wait_for_faces(2)
    faces.wait_for_text("preview", "may show somebody else")


def test_a_face_changes_the_picture_and_its_infotext_restores_the_choice(faces, files):
    page = faces.page
    small_job(page)
    page.fill("#txt2img_prompt textarea", "a person")
    page.uncheck("#txt2img_ipadapter-visible-checkbox")
    plain, _ = generate(page)
    page.check("#txt2img_ipadapter-visible-checkbox")
    faces.choose(files["group"])
    faces.wait_for_faces(3)
    page.click(box(faces, 1))
    faces.wait_for_faces(3)
    faces.set_number("s_scale", 1.5)
    text = faces.face_text()
    changed, info = generate(page)
    assert changed and changed != plain
    assert '"faces":"buffalo_l' in info.replace("\\", "")
    page.reload()
    page.wait_for_selector("#txt2img_ipadapter-visible-checkbox", timeout=6 * PATIENCE_MS)
    page.fill("#txt2img_prompt textarea", info)
    page.click("#paste")
    faces.wait_for_faces(3)
    faces.open()
    assert faces.intent() == "Face"
    assert (faces.face_text(), faces.number("s_scale"), faces.number("lora")) == (text, 1.5, 0.6)
    assert [pressed for _, pressed in faces.faces()] == [False, True, False]
    assert generate(page) == (changed, info)
