"""A unit's region on the page: chosen from the list, or typed."""

from __future__ import annotations

import pytest

from tests.e2e.client import picture
from tests.e2e.page_driver import PATIENCE_MS, generate, need_adapter, small_job


@pytest.mark.parametrize("typed", ["", "0.1,0.2,0.5,0.6"], ids=["chosen", "typed"])
def test_a_region_acts_and_comes_back_from_the_infotext(accordion, tmp_path, typed):
    need_adapter(accordion)
    page = accordion.page
    small_job(page)
    page.fill("#txt2img_prompt textarea", "a house")
    picture((220, 20, 20), (300, 200)).save(tmp_path / "red.png")
    accordion.choose(tmp_path / "red.png")
    accordion.wait_for_thumbnails(1)
    assert accordion.selected("region") == "Auto"
    everywhere, whole_info = generate(page)
    assert '\\"region' not in whole_info
    box = f"{accordion.unit()}_region input"
    if typed:
        page.fill(box, typed)
        page.press(box, "Enter")
    else:
        accordion.select("region", "Left third")
    accordion.set_number("feather", 0.1)
    confined, info = generate(page)
    assert confined
    assert confined != everywhere
    expected = typed or "Left third"
    assert expected.lower() in info

    page.reload()
    page.wait_for_selector("#txt2img_ipadapter-visible-checkbox", timeout=6 * PATIENCE_MS)
    page.fill("#txt2img_prompt textarea", info)
    page.click("#paste")
    accordion.wait_for_thumbnails(1)
    accordion.open()
    assert accordion.selected("region") == expected
    assert accordion.number("feather") == 0.1
    assert generate(page) == (confined, info)
