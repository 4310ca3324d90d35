"""The accordion in a browser: every way a reference gets in, what is shown of it, and that its values survive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.client import picture
from tests.e2e.page_driver import PATIENCE_MS, Accordion, generate, need_adapter, small_job

UNKNOWN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures and something else."""
    folder = tmp_path_factory.mktemp("references")
    picture((220, 20, 20), (300, 200)).save(folder / "red.png")
    picture((20, 20, 220), (160, 240)).save(folder / "blue.jpg")
    picture((20, 220, 20)).save(folder / "green.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return {path.stem: path for path in folder.iterdir()}


def test_the_accordion_is_closed_and_off_in_both_tabs(page):
    for tab in ("txt2img", "img2img"):
        assert not page.is_checked(f"#{tab}_ipadapter-visible-checkbox")
        assert "open" not in page.get_attribute(f"#{tab}_ipadapter > .label-wrap", "class").split()


def test_opening_switches_on_and_names_the_adapter(accordion):
    need_adapter(accordion)
    assert accordion.is_on()
    assert "encoder" in accordion.text("adapter_line")
    assert accordion.number("weight") == 0.8
    assert accordion.intent() == "Image"


def test_several_chosen_files_are_shown_as_they_are_and_as_the_encoder_sees_them(accordion, files):
    accordion.choose(files["red"], files["blue"])
    accordion.wait_for_thumbnails(2)
    accordion.wait_for_squares(2)
    squares = accordion.squares()
    assert all(square.width == square.height for square in squares)
    red, blue = (square.convert("RGB").getpixel((square.width - 2, square.height - 2)) for square in squares)
    assert red[0] > 180 > red[2]
    assert blue[2] > 180 > blue[0]
    assert accordion.references().count("sha256:") == 2


def test_another_crop_is_seen_at_once(accordion, files):
    accordion.choose(files["red"])
    accordion.wait_for_squares(1)
    centre = accordion.squares()[0].tobytes()
    accordion.select("crop", "Pad")
    accordion.page.wait_for_timeout(1500)
    assert accordion.squares()[0].tobytes() != centre


def test_dropping_adds_to_what_is_there(accordion, files):
    accordion.drop(files["red"])
    accordion.wait_for_thumbnails(1)
    accordion.drop(files["blue"], files["green"])
    accordion.wait_for_thumbnails(3)


def test_two_drops_in_a_row_both_arrive(accordion, files):
    accordion.drop(files["red"])
    accordion.drop(files["blue"])
    accordion.wait_for_thumbnails(2)


@pytest.mark.parametrize("how", ["focus", "hover"])
def test_pasting_goes_to_the_strip_and_nowhere_else(accordion, files, how):
    page, add = accordion.page, f"{accordion.unit()}_strip .ipadapter-add"
    page.focus(add) if how == "focus" else page.hover(add)
    page.evaluate(
        "() => { window.ipadapterSeen = 0; addEventListener('paste', () => { window.ipadapterSeen += 1; }); }"
    )
    accordion.paste(files["red"])
    accordion.wait_for_thumbnails(1)
    assert page.evaluate("window.ipadapterSeen") == 0


def test_pasting_elsewhere_is_left_to_the_host(accordion, files):
    accordion.page.hover("#txt2img_prompt textarea")
    accordion.page.focus("#txt2img_prompt textarea")
    accordion.paste(files["red"])
    accordion.page.wait_for_timeout(800)
    assert accordion.references() == ""


def test_pictures_are_removed_one_by_one_by_keyboard_and_all_at_once(accordion, files):
    page, strip = accordion.page, f"{accordion.unit()}_strip"
    accordion.choose(files["red"], files["blue"], files["green"])
    accordion.wait_for_thumbnails(3)
    kept = accordion.references()
    page.click(f"{strip} [aria-label='Remove reference 2']")
    accordion.wait_for_thumbnails(2)
    assert re.findall(r"\w{64}", accordion.references()) == re.findall(r"\w{64}", kept)[::2]
    page.focus(f"{strip} [aria-label='Remove reference 1']")
    page.keyboard.press("Delete")
    accordion.wait_for_thumbnails(1)
    page.wait_for_function("document.activeElement.classList.contains('ipadapter-remove')", timeout=PATIENCE_MS)
    accordion.choose(files["red"])
    accordion.wait_for_thumbnails(2)
    page.click(f"{strip} .ipadapter-clear")
    accordion.wait_for_thumbnails(0)
    accordion.wait_for_squares(0)
    assert accordion.references() == ""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that take a while to read, and small ones, in turn."""
    folder = tmp_path_factory.mktemp("many")
    made = []
    for number in range(8):
        size = (2400, 1600) if number % 3 == 0 else (90, 60)
        made.append(folder / f"{number}.png")
        picture((30 * number, 255 - 30 * number, 90), size).save(made[-1], compress_level=1)
    return made


def test_what_is_shown_is_what_acts_however_quickly_it_changes(accordion, many):
    page, strip = accordion.page, f"{accordion.unit()}_strip"
    accordion.choose(*many)
    accordion.wait_for_thumbnails(8)
    accordion.wait_for_squares(8)
    before = json.loads(accordion.references())
    page.evaluate(
        "([all, places]) => places.map(place => document.querySelectorAll(all)[place]).forEach(one => one.click())",
        [f"{strip} .ipadapter-remove", [0, 3, 5]],
    )
    accordion.select("crop", "Tiles")
    accordion.select("crop", "Stretch")
    accordion.wait_for_thumbnails(5)
    accordion.wait_for_squares(5)
    page.wait_for_timeout(1000)
    accordion.wait_for_thumbnails(5)
    accordion.wait_for_squares(5)
    assert json.loads(accordion.references()) == [one for place, one in enumerate(before) if place not in (0, 3, 5)]


def test_a_double_click_removes_one_picture(accordion, many):
    accordion.choose(*many[:3])
    accordion.wait_for_thumbnails(3)
    before = json.loads(accordion.references())
    accordion.page.dblclick(f"{accordion.unit()}_strip [aria-label='Remove reference 1']")
    accordion.page.wait_for_timeout(1500)
    assert json.loads(accordion.references()) == before[1:]
    accordion.wait_for_thumbnails(2)


def test_a_deleted_picture_is_back_when_it_is_added_again(accordion, files):
    page = accordion.page
    page.on("dialog", lambda dialog: dialog.accept())
    accordion.choose(files["red"])
    accordion.wait_for_thumbnails(1)
    accordion.wait_for_squares(1)
    page.click(f"{accordion.id}_delete_store")
    accordion.wait_for_text("strip", "add the picture again")
    accordion.wait_for_squares(0)
    accordion.choose(files["red"])
    accordion.wait_for_thumbnails(1)
    accordion.wait_for_squares(1)
    assert "add the picture again" not in accordion.text("strip")


def test_tiles_are_shown_as_squares_of_their_own(accordion, tmp_path):
    picture((200, 40, 90), (300, 100)).save(tmp_path / "wide.png")
    accordion.choose(tmp_path / "wide.png")
    accordion.wait_for_squares(1)
    accordion.select("crop", "Tiles")
    accordion.wait_for_squares(3)
    assert all(square.width == square.height for square in accordion.squares())
    sizes = accordion.page.eval_on_selector_all(
        f"{accordion.unit()}_preview img", "all => all.map(one => one.offsetWidth / one.offsetHeight)"
    )
    assert sizes == [1, 1, 1]


def test_text_is_pasted_where_the_user_types_even_with_the_mouse_over_the_strip(accordion, files):
    page = accordion.page
    page.focus("#txt2img_prompt textarea")
    page.hover(f"{accordion.unit()}_strip .ipadapter-add")
    accordion.paste(files["red"], text="a word")
    page.wait_for_timeout(800)
    assert accordion.references() == ""


def test_the_keyboard_stays_where_it_was_when_the_strip_is_drawn_anew(accordion, files):
    page, strip = accordion.page, f"{accordion.unit()}_strip"
    accordion.choose(files["red"], files["blue"])
    accordion.wait_for_thumbnails(2)
    for button in (".ipadapter-add", "[aria-label='Remove reference 2']"):
        page.focus(f"{strip} {button}")
        page.evaluate("selector => document.querySelector(selector).dataset.old = 'yes'", f"{strip} {button}")
        page.click(f"{accordion.unit()}_refresh", no_wait_after=True)
        page.focus(f"{strip} {button}")
        page.wait_for_function(
            "selector => { const now = document.querySelector(selector); return now && !now.dataset.old; }",
            arg=f"{strip} {button}",
            timeout=PATIENCE_MS,
        )
        page.wait_for_function(
            "selector => document.activeElement === document.querySelector(selector)",
            arg=f"{strip} {button}",
            timeout=PATIENCE_MS,
        )


def test_a_wrong_file_is_answered_with_a_sentence(accordion, files):
    accordion.drop(files["notes"], files["red"])
    accordion.wait_for_thumbnails(1)
    accordion.wait_for_text("message", "notes.txt is not a picture")


def test_units_are_independent(accordion, files):
    page = accordion.page
    accordion.choose(files["red"])
    accordion.wait_for_thumbnails(1)
    page.click(f"{accordion.id}_units .tab-nav >> text=Unit 2")
    accordion.choose(files["blue"], number=2)
    accordion.wait_for_thumbnails(1, number=2)
    assert accordion.references(1) != accordion.references(2)
    page.wait_for_function(
        "selector => document.querySelectorAll(selector).length === 2",
        arg=f"{accordion.id}_units .ipadapter-acting",
        timeout=PATIENCE_MS,
    )


def test_the_adapter_list_has_auto_and_what_fits(accordion):
    need_adapter(accordion)
    page = accordion.page
    page.click(f"{accordion.unit()}_adapter input")
    options = page.eval_on_selector_all("ul.options li", "all => all.map(one => one.innerText.trim())")
    names = [option.lstrip("✓ \n") for option in options]
    assert names[0] == "auto"
    assert len(names) > 1
    page.click(f"ul.options li:has-text('{names[1]}')")
    accordion.wait_for_text("adapter_line", names[1])
    page.click(f"{accordion.unit()}_refresh")
    accordion.wait_for_text("adapter_line", names[1])
    assert accordion.selected("adapter") == names[1]


def test_switched_on_without_a_picture_stops_with_a_sentence(accordion):
    small_job(accordion.page)
    pixels, sentence = generate(accordion.page)
    assert not pixels
    assert "reference picture" in sentence


def test_a_reference_changes_the_picture_and_its_infotext_restores_everything(accordion, files):
    need_adapter(accordion)
    page = accordion.page
    small_job(page)
    page.fill("#txt2img_prompt textarea", "a house")
    page.uncheck("#txt2img_ipadapter-visible-checkbox")
    plain, plain_info = generate(page)
    page.check("#txt2img_ipadapter-visible-checkbox")
    accordion.choose(files["red"], files["blue"])
    accordion.wait_for_thumbnails(2)
    accordion.set_number("weight", 1.25)
    accordion.select("crop", "Pad")
    page.click(f"{accordion.unit()}_intent >> text=Style + composition")
    changed, info = generate(page)
    assert "IP-Adapter" not in plain_info
    assert "IP-Adapter unit 1" in info
    assert plain
    assert changed
    assert changed != plain
    # A host that loads its checkpoint with the first picture knows the encoder only now, and the preview follows.
    page.wait_for_timeout(1500)
    references, squares = accordion.references(), [(square.size, square.tobytes()) for square in accordion.squares()]

    page.reload()
    page.wait_for_selector("#txt2img_ipadapter-visible-checkbox", timeout=6 * PATIENCE_MS)
    page.fill("#txt2img_prompt textarea", info)
    page.click("#paste")
    accordion.wait_for_thumbnails(2)
    accordion.wait_for_squares(2)
    accordion.open()
    assert accordion.is_on()
    assert accordion.references() == references
    assert accordion.number("weight") == 1.25
    assert accordion.intent() == "Style + composition"
    assert accordion.selected("crop") == "Pad"
    page.wait_for_timeout(500)
    assert [(square.size, square.tobytes()) for square in accordion.squares()] == squares
    assert generate(page) == (changed, info)


def test_send_to_img2img_keeps_the_values(accordion, files):
    need_adapter(accordion)
    page = accordion.page
    small_job(page)
    accordion.choose(files["red"])
    accordion.wait_for_thumbnails(1)
    accordion.set_number("weight", 0.45)
    accordion.set_number("end", 0.9)
    generate(page)
    page.click("#txt2img_send_to_img2img")
    other = Accordion(page, "img2img")
    other.wait_for_thumbnails(1)
    other.open()
    assert other.is_on()
    assert other.references() == accordion.references()
    assert (other.number("weight"), other.number("end")) == (0.45, 0.9)


def test_a_pasted_reference_that_is_gone_is_told_of_and_stops_the_job(accordion):
    page = accordion.page
    unit = {"weight": 0.5, "adapter": "<img src=x onerror=window.ipadapterHit=1>", "refs": [UNKNOWN]}
    value = json.dumps(json.dumps(unit))
    page.fill("#txt2img_prompt textarea", f"a house\nSteps: 2, Seed: 1, Size: 64x64, IP-Adapter unit 1: {value}")
    page.click("#paste")
    accordion.wait_for_text("strip", "add the picture again")
    assert accordion.number("weight") == 0.5
    assert accordion.selected("adapter").startswith("<img")
    accordion.wait_for_text("adapter_line", "<img src=x")
    pixels, sentence = generate(page)
    assert not pixels
    assert re.search("picture|adapter", sentence)
    assert page.evaluate("window.ipadapterHit") is None


def test_pasting_a_picture_without_us_switches_off(accordion):
    page = accordion.page
    page.fill("#txt2img_prompt textarea", "a house\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
    page.click("#paste")
    page.wait_for_function(
        "!document.querySelector('#txt2img_ipadapter-visible-checkbox').checked", timeout=PATIENCE_MS
    )
