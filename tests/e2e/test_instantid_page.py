"""InstantID in a browser: advice that applies on a click."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.e2e.page_driver import PATIENCE_MS, Accordion, fill, generate, need_adapter, small_job

SHOWN = ".ipadapter-advice button.ipadapter-chip:not([hidden])"


@pytest.fixture
def instantid(accordion: Accordion) -> Accordion:
    """The accordion with the intent InstantID, on a host that has its adapter."""
    need_adapter(accordion)
    accordion.choose_intent("InstantID")
    accordion.page.wait_for_function(
        "selector => document.querySelector(selector)?.classList.contains('ipadapter-with-net')",
        arg=accordion.unit(),
        timeout=PATIENCE_MS,
    )
    if "instant" not in accordion.text("adapter_line"):
        pytest.skip(f"no InstantID for the loaded checkpoint: {accordion.text('adapter_line')}")
    return accordion


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
