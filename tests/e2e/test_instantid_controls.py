"""InstantID in a browser: advice that applies on a click, and keypoints that are moved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.page_driver import PATIENCE_MS, Accordion, fill, generate, open_person, small_job
from tests.encoders.face_pictures import portrait

SHOWN = ".ipadapter-advice button.ipadapter-chip:not([hidden])"


@pytest.fixture
def instantid(accordion: Accordion) -> Accordion:
    """The accordion with the intent InstantID, on a host that has its adapter."""
    return open_person(accordion, "InstantID", "ipadapter-with-net", "IdentityNet:")


def host_field(field: str, tab: str = "txt2img") -> str:
    return f"#{tab}_{field} input[type=number]"


def set_host(page: Any, **values: float) -> None:
    for field, value in values.items():
        fill(page, host_field(field), value)


def held(page: Any, *fields: str) -> list[float]:
    return [float(page.input_value(host_field(field))) for field in fields]


def size(width: int, height: int) -> str:
    """A size as its chip says it."""
    return f"{width} \u00d7 {height}"


def wait_for_chips(accordion: Accordion, *labels: str) -> None:
    accordion.page.wait_for_function(
        "([selector, labels]) => Array.from(document.querySelectorAll(selector), one => one.textContent).join('|')"
        " === labels",
        arg=[f"{accordion.unit()} {SHOWN}", "|".join(labels)],
        timeout=PATIENCE_MS,
    )


def chip(accordion: Accordion, label: str) -> str:
    return f"{accordion.unit()} {SHOWN}:text-is('{label}')"


def test_a_chip_sets_what_it_says_and_goes_and_the_job_gets_it(instantid: Accordion) -> None:
    page = instantid.page
    small_job(page)
    set_host(page, cfg_scale=7, steps=20, width=1024, height=64)
    wait_for_chips(instantid, "CFG 4.5", "30 steps", size(1016, 64))
    page.click(chip(instantid, "CFG 4.5"))
    wait_for_chips(instantid, "30 steps", size(1016, 64))
    assert held(page, "cfg_scale", "steps", "width", "height") == [4.5, 20, 1024, 64], "nothing unasked"
    page.click(chip(instantid, size(1016, 64)))
    page.click(chip(instantid, "30 steps"))
    wait_for_chips(instantid)
    page.click(f"{instantid.id}-visible-checkbox")
    _, infotext = generate(page)
    for part in ("Steps: 30", "CFG scale: 4.5", "Size: 1016x64"):
        assert part in infotext


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({"cfg_scale": 4, "steps": 30, "width": 1016, "height": 1016}, ()),
        ({"cfg_scale": 5, "steps": 50, "width": 512, "height": 768}, ()),
        ({"cfg_scale": 3.5, "steps": 29, "width": 1024, "height": 1024}, ("CFG 4.5", "30 steps", size(1016, 1016))),
        ({"cfg_scale": 5, "steps": 30, "width": 832, "height": 1216}, (size(824, 1208),)),
        ({"cfg_scale": 1.5, "steps": 8, "width": 512, "height": 512}, ()),
        ({"cfg_scale": 1.5, "steps": 20, "width": 512, "height": 512}, ("CFG 4.5", "30 steps")),
    ],
)
def test_a_chip_is_there_where_the_pages_value_differs(instantid: Accordion, values: Any, labels: Any) -> None:
    set_host(instantid.page, cfg_scale=9, steps=40, width=256, height=256)
    wait_for_chips(instantid, "CFG 4.5")
    set_host(instantid.page, **values)
    wait_for_chips(instantid, *labels)


def test_chips_are_worked_by_keyboard_and_named_for_those_who_hear_them(instantid: Accordion) -> None:
    page = instantid.page
    set_host(page, cfg_scale=7, steps=20, width=1024, height=1024)
    wait_for_chips(instantid, "CFG 4.5", "30 steps", size(1016, 1016))
    names = page.eval_on_selector_all(f"{instantid.unit()} {SHOWN}", "all => all.map(one => one.ariaLabel)")
    assert [re.split(r"\. ", name)[0] for name in names] == [
        "Set CFG Scale to 4.5", "Set Sampling steps to 30", f"Set the size to {size(1016, 1016)}"
    ]  # fmt: skip
    page.focus(chip(instantid, "CFG 4.5"))
    for _ in range(3):
        page.keyboard.press("Enter")
    wait_for_chips(instantid)
    assert held(page, "cfg_scale", "steps", "width", "height") == [4.5, 30, 1016, 1016]
    assert page.evaluate("document.activeElement.closest('#txt2img_width') !== null"), "where the last value went"


def test_a_value_that_changed_without_an_event_is_seen(instantid: Accordion) -> None:
    page = instantid.page
    set_host(page, cfg_scale=7, steps=30, width=512, height=512)
    wait_for_chips(instantid, "CFG 4.5")
    page.eval_on_selector(host_field("cfg_scale"), "one => { one.value = '5'; }")
    wait_for_chips(instantid)


def test_other_intents_have_no_chips(instantid: Accordion) -> None:
    set_host(instantid.page, cfg_scale=7)
    wait_for_chips(instantid, "CFG 4.5", *(["30 steps"] if held(instantid.page, "steps")[0] < 30 else []))
    instantid.choose_intent("Style + composition")
    instantid.page.wait_for_selector(f"{instantid.unit()} .ipadapter-advice", state="detached", timeout=PATIENCE_MS)


@pytest.fixture
def editor(instantid: Accordion, tmp_path: Path) -> Accordion:
    """The accordion with a photo whose keypoints are drawn."""
    small_job(instantid.page)
    portrait(1).save(tmp_path / "one.png")
    instantid.choose(tmp_path / "one.png")
    instantid.page.wait_for_selector(f"{dot(instantid, 4)}", timeout=3 * PATIENCE_MS)
    assert keypoints(instantid) == "auto"
    return instantid


def dot(accordion: Accordion, place: int) -> str:
    return f"{accordion.unit()} .ipadapter-dot >> nth={place}"


def keypoints(accordion: Accordion) -> str:
    return accordion.page.input_value(f"{accordion.unit()}_keypoints textarea")


def drawn(accordion: Accordion) -> np.ndarray:
    """Where the handles are that the server drew, as fractions."""
    script = "all => all.map(one => [Number(one.dataset.x), Number(one.dataset.y)])"
    return np.array(accordion.page.eval_on_selector_all(f"{accordion.unit()} .ipadapter-dot", script))


def wait_for_own(accordion: Accordion) -> np.ndarray:
    """The points in the unit's field, once there are any and the server has drawn them."""
    accordion.page.wait_for_function(
        "([field, dots]) => { try { const points = JSON.parse(document.querySelector(field).value);"
        " const all = Array.from(document.querySelectorAll(dots)); return all.length === 5 && all.every((one, place) =>"
        " Number(one.dataset.x) === points[place][0] && Number(one.dataset.y) === points[place][1]); }"
        " catch { return false; } }",
        arg=[f"{accordion.unit()}_keypoints textarea", f"{accordion.unit()} .ipadapter-dot"],
        timeout=PATIENCE_MS,
    )
    return np.array(json.loads(keypoints(accordion)))


def test_a_point_that_is_dragged_is_written_drawn_and_sent_and_the_photos_come_back(editor: Accordion) -> None:
    page, before = editor.page, drawn(editor)
    frame, handle = page.locator(f"{editor.unit()} .ipadapter-map"), page.locator(dot(editor, 2))
    handle.scroll_into_view_if_needed()
    box, side = handle.bounding_box(), frame.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.1 * side["width"], y + 0.2 * side["height"], steps=5)
    assert keypoints(editor) == "auto", "nothing is written before it is let go"
    page.mouse.up()
    after = wait_for_own(editor)
    np.testing.assert_allclose(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]], atol=1e-4)
    np.testing.assert_allclose(after[2] - before[2], [0.1, 0.2], atol=0.02)
    _, infotext = generate(page)
    assert json.dumps(json.loads(keypoints(editor)), separators=(",", ":")) in infotext
    page.click(f"{editor.unit()} .ipadapter-map-reset")
    page.wait_for_selector(f"{editor.unit()} .ipadapter-map-reset", state="detached", timeout=PATIENCE_MS)
    assert keypoints(editor) == "auto"
    np.testing.assert_allclose(drawn(editor), before)


def test_a_point_is_moved_by_keys_and_keeps_the_focus(editor: Accordion) -> None:
    page, before = editor.page, drawn(editor)
    page.focus(dot(editor, 0))
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        page.keyboard.press(key)
    label = page.get_attribute(dot(editor, 0), "aria-label")
    assert re.fullmatch(r"Eye on the left, \d+% across, \d+% down", label)
    after = wait_for_own(editor)
    np.testing.assert_allclose(after[0] - before[0], [0.01, 0.045], atol=2e-4)
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-4)
    held = "selector => document.querySelectorAll(selector)[0] === document.activeElement"
    page.wait_for_function(held, arg=f"{editor.unit()} .ipadapter-dot", timeout=PATIENCE_MS)
    for _ in range(25):
        page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function(
        "selector => JSON.parse(document.querySelector(selector).value)[0][0] === 0",
        arg=f"{editor.unit()}_keypoints textarea",
        timeout=PATIENCE_MS,
    )


def test_a_point_is_moved_by_touch(editor: Accordion) -> None:
    page, before = editor.page, drawn(editor)
    handle = page.locator(dot(editor, 3))
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]), ("touchMove", [{"x": x - 10, "y": y + 20}]),
        ("touchMove", [{"x": x - 20, "y": y + 40}]), ("touchEnd", []),
    ):  # fmt: skip
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    after = wait_for_own(editor)
    assert after[3][0] < before[3][0] - 0.03
    assert after[3][1] > before[3][1] + 0.05


def test_a_mirrored_face_has_its_points_in_their_order_and_twice_is_as_before(editor: Accordion) -> None:
    page, before = editor.page, drawn(editor)
    page.click(f"{editor.unit()} .ipadapter-map-mirror")
    mirrored = wait_for_own(editor)
    np.testing.assert_allclose(mirrored[:, 0], 1 - before[[1, 0, 2, 4, 3], 0], atol=1e-4)
    np.testing.assert_allclose(mirrored[:, 1], before[[1, 0, 2, 4, 3], 1], atol=1e-4)
    assert mirrored[0][0] < mirrored[1][0]
    page.click(f"{editor.unit()} .ipadapter-map-mirror")
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).value !== text",
        arg=[f"{editor.unit()}_keypoints textarea", json.dumps(mirrored.tolist(), separators=(",", ":"))],
        timeout=PATIENCE_MS,
    )
    np.testing.assert_allclose(wait_for_own(editor), before, atol=2e-4)


def test_the_map_has_the_shape_of_the_picture_to_be_made(editor: Accordion) -> None:
    page = editor.page
    shape = f"{editor.unit()} .ipadapter-map[data-size='%s']"
    page.wait_for_selector(shape % "64x64", timeout=PATIENCE_MS)
    set_host(page, width=512, height=768)
    page.wait_for_selector(shape % "512x768", timeout=PATIENCE_MS)
    box = page.locator(f"{editor.unit()} .ipadapter-map").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(1.5, abs=0.02)


def test_a_map_comes_back_when_the_face_fits_again(editor: Accordion) -> None:
    """The middle of the photo covers the picture: of a low one, the face is outside."""
    page, handles = editor.page, f"{editor.unit()} .ipadapter-dot"
    set_host(page, width=1024, height=64)
    page.wait_for_selector(handles, state="detached", timeout=PATIENCE_MS)
    editor.wait_for_text("preview", "outside the canvas")
    set_host(page, height=1024)
    page.wait_for_selector(f"{editor.unit()} .ipadapter-map[data-size='1024x1024']", timeout=PATIENCE_MS)
