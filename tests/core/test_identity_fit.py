"""Which ControlNet runs on which UNet, told from the UNet's blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from lib_ipadapter.core.identity_fit import fit_to_unet
from lib_ipadapter.library.errors import WrongBaseError
from lib_ipadapter.library.spec import ControlNetSpec
from tests.unets import sd2_unet, sd15_unet, sdxl_unet

from .random_controlnets import SD15, SDXL, narrow

SD2 = replace(SD15, context_dim=1024, heads=(5, 10, 20, 20))


@pytest.fixture(scope="module")
def unets() -> dict[str, Any]:
    return {"SD1": sd15_unet(), "SD2": sd2_unet(), "SDXL": sdxl_unet(label_dim=24)}


@pytest.mark.parametrize(("base", "spec"), [("SD1", SD15), ("SD2", SD2), ("SDXL", SDXL)])
def test_the_unets_heads_take_the_place_of_the_assumed_ones(base: str, spec: ControlNetSpec, unets: Any) -> None:
    small = replace(narrow(spec, y_dim=24 if spec.y_dim else 0), heads=(1,) * len(spec.channels))
    fitted = fit_to_unet(small, unets[base])
    # SDXL's first level has no attention, so nothing is there to read.
    assert fitted.heads == {"SD1": (8, 8, 8, 8), "SD2": (4, 8, 16, 16), "SDXL": (1, 4, 8)}[base]
    assert replace(fitted, heads=small.heads) == small


@pytest.mark.parametrize("in_channels", [8, 9])
def test_inpainting_and_editing_unets_fit(in_channels: int) -> None:
    assert fit_to_unet(narrow(SD15), sd15_unet(in_channels=in_channels)).in_channels == 4


@pytest.mark.parametrize(
    ("base", "changed", "words"),
    [
        ("SD1", {"channels": (64, 128, 256, 256)}, "64-64-64-64-128.*32-32-32-32-64"),
        ("SDXL", {"y_dim": 0}, "vector of 0 numbers.* has 24"),
        ("SDXL", {"y_dim": 2816}, "vector of 2816 numbers.* has 24"),
        ("SDXL", {"depths": (0, 2, 4)}, "0-0-0-0-2-2-0-4-4 and 10 .* has 0-0-0-0-2-2-0-10-10 and 10"),
        ("SDXL", {"mid_depth": 4}, "and 4 in the middle"),
        ("SD1", {"in_channels": 5}, "5 channels"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(
    base: str, changed: dict[str, Any], words: str, unets: Any
) -> None:
    spec = narrow(SD15) if base == "SD1" else narrow(SDXL, y_dim=24)
    with pytest.raises(WrongBaseError, match=words):
        fit_to_unet(replace(spec, **changed), unets[base])


def test_another_base_is_refused(unets: Any) -> None:
    for base, spec in (("SDXL", narrow(SD15)), ("SD1", narrow(SDXL))):
        with pytest.raises(WrongBaseError, match="skip connections"):
            fit_to_unet(spec, unets[base])


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(WrongBaseError, match="no input and middle blocks"):
        fit_to_unet(SDXL, nn.Linear(1, 1))
