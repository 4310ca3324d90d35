"""The stand-in's page in a browser: the host's scripts, Generate, the accordion that is an input, paste and send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def page(standin, browser, record) -> Iterator[Any]:
    """The page, loaded, with the smallest job set."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1600})
    opened.set_default_timeout(60_000)
    opened.goto(standin.serve())
    opened.wait_for_function("document.body.dataset.toyLoaded !== undefined")
    for tab in ("txt2img", "img2img"):
        for name, value in (("steps", 2), ("width", 64), ("height", 64)):
            set_value(opened, f"#{tab}_{name} input[type=number]", value)
    yield opened
    opened.close()


def set_value(page, selector: str, value) -> None:
    """Type into a field of either tab, shown or not."""
    page.evaluate("""([selector, value]) => {
        const field = document.querySelector(selector);
        const kind = field.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
        Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, value);
        for (const name of ['input', 'change', 'blur']) field.dispatchEvent(new Event(name, {bubbles: true}));
    }""", [selector, str(value)])


def generate(page, tab: str = "txt2img") -> str:
    """Press Generate and wait for its info; returns that text."""
    page.evaluate(f"document.querySelector('#html_log_{tab} .performance')?.remove()")
    page.click(f"#{tab}_generate")
    page.wait_for_selector(f"#html_log_{tab} .performance", state="attached")
    return page.inner_text(f"#html_info_{tab}")


def test_scripts_and_styles_of_extensions_are_loaded(page):
    assert page.evaluate("document.body.dataset.toyLoaded") == "with opts"
    page.wait_for_function("document.body.dataset.toyUpdated === 'yes'")
    style = "getComputedStyle(document.body).getPropertyValue('--toy-style').trim()"
    assert page.evaluate(style) == "present"


def test_generate_shows_the_picture_its_infotext_and_the_comments(page, record):
    record.comments = ["careful <b>"]
    page.fill("#txt2img_prompt textarea", "a blue boat")
    assert "a blue boat" in generate(page)
    assert "careful <b>" in page.inner_text("#html_log_txt2img")
    page.wait_for_selector("#txt2img_gallery img")
    assert record.args == [(False, "default text", 3)]


def test_an_error_is_shown_with_its_class(page, record):
    record.sample_error = ValueError("the unit <cannot> run")
    generate(page)
    assert "ValueError: the unit <cannot> run" in page.inner_text("#html_log_txt2img .error")


def test_opening_the_accordion_ticks_it(page, record):
    page.click("#script_txt2img_toy_recorder_open .label-wrap")
    page.wait_for_function("document.querySelector('#script_txt2img_toy_recorder_open-visible-checkbox').checked")
    page.fill("#script_txt2img_toy_recorder_text textarea", "typed")
    generate(page)
    assert record.args == [(True, "typed", 3)]


def test_pasting_an_infotext_fills_the_tab_and_the_scripts(page, record):
    page.fill("#txt2img_prompt textarea",
              'a dog\nNegative prompt: bad\nSteps: 3, Sampler: Heun, CFG scale: 5, Seed: 9, Size: 72x64, '
              'Toy text: "a, b", Toy number: 8')
    page.click("#paste")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'a dog'")
    text = generate(page)
    assert "Steps: 3, Sampler: Heun" in text
    assert "Seed: 9, Size: 72x64" in text
    assert record.args == [(False, "a, b", 8)]


def test_send_to_img2img_takes_the_picture_and_the_named_fields(page, record):
    page.fill("#txt2img_prompt textarea", "a lake")
    page.click("#script_txt2img_toy_recorder_open .label-wrap")
    page.fill("#script_txt2img_toy_recorder_text textarea", "along")
    generate(page)
    page.wait_for_selector("#txt2img_gallery img")
    page.click("#txt2img_send_to_img2img")
    page.wait_for_selector("#img2img_image img")
    page.wait_for_function("document.querySelector('#img2img_prompt textarea').value === 'a lake'")
    record.args.clear()
    assert "a lake" in generate(page, "img2img")
    assert [args[1] for args in record.args] == ["along"]


def test_ui_config_freezes_defaults_by_label(standin, record):
    from modules import shared

    text = (standin.data_dir / "ui-config.json").read_text(encoding="utf-8")
    assert '"customscript/recorder.py/txt2img/Toy number/value": 3' in text
    assert shared.cmd_opts.ui_config_file.endswith("ui-config.json")
