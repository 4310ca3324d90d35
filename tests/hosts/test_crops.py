"""Which part of the picture a job samples, by what the hosts leave on its processing object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.hosts.crops import Crop, sampled_crop
from lib_ipadapter.library.errors import UnsupportedHostStateError

PICTURE = Image.new("RGB", (640, 480))


def job(**values: Any) -> Any:
    given = {"image_mask": PICTURE, "inpaint_full_res": True, "paste_to": (10, 20, 300, 200), "init_images": [PICTURE]}
    return SimpleNamespace(**(given | values))


def test_only_masked_samples_the_box_in_the_picture_that_was_sent() -> None:
    assert sampled_crop(job()) == Crop((640, 480), (10, 20, 300, 200))
    assert sampled_crop(job(init_images=[PICTURE, PICTURE.copy()])) == Crop((640, 480), (10, 20, 300, 200))


@pytest.mark.parametrize(
    "values",
    [{"image_mask": None}, {"inpaint_full_res": False}, {"inpaint_full_res": 0}],
    ids=["img2img", "whole picture", "a blank mask in a batch whose last mask was not"],
)
def test_other_jobs_sample_the_whole(values: dict[str, Any]) -> None:
    assert sampled_crop(job(**values)) is None


def test_txt2img_samples_the_whole() -> None:
    assert sampled_crop(SimpleNamespace(paste_to=None)) is None


@pytest.mark.parametrize("box", [None, (), (1, 2, 3), (1, 2, 0, 5), "1234"])
def test_an_unknown_box_is_refused(box: Any) -> None:
    with pytest.raises(UnsupportedHostStateError, match="does not say where"):
        sampled_crop(job(paste_to=box))


@pytest.mark.parametrize(("images", "says"), [(None, "of no pictures"), ([PICTURE, Image.new("L", (64, 48))], "64x48")])
def test_pictures_of_several_sizes_are_refused(images: Any, says: str) -> None:
    with pytest.raises(UnsupportedHostStateError, match=says):
        sampled_crop(job(init_images=images))
