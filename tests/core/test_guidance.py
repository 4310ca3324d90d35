"""Rescaled guidance, against the paper's formula and diffusers' own function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.guidance import rescale_guidance, still_noise, still_picture

KEPT = torch.tensor([0.0047, 0.3, 0.9])
"""alphas_cumprod at a high, a middle and a low noise level, a picture each."""


def predictions() -> tuple[Tensor, Tensor, Tensor]:
    """A noisy picture in the variance preserving form, and v predicted for the prompt and for the negative."""
    noise = torch.Generator().manual_seed(3)
    noisy, cond, uncond = (torch.randn(3, 4, 16, 16, generator=noise) for _ in range(3))
    return noisy, cond, cond + 0.3 * uncond


def wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def picture_of(noisy: Tensor, v: Tensor) -> Tensor:
    """Salimans and Ho 2022 (arXiv 2202.00512), section 4: x = alpha z - sigma v."""
    return wide(KEPT.sqrt()) * noisy - wide((1 - KEPT).sqrt()) * v


def noise_of(noisy: Tensor, v: Tensor) -> Tensor:
    """The same: eps = alpha v + sigma z."""
    return wide(KEPT.sqrt()) * v + wide((1 - KEPT).sqrt()) * noisy


@pytest.mark.parametrize("amount", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("predicted", ["picture", "noise"])
def test_whatever_is_predicted_v_becomes_what_diffusers_makes_of_it(amount: float, predicted: str) -> None:
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    noisy, cond, uncond = predictions()
    guided = uncond + 7.0 * (cond - uncond)
    expected = module.rescale_noise_cfg(guided, cond, guidance_rescale=amount)
    if predicted == "noise":
        found = rescale_guidance(noise_of(noisy, guided), noise_of(noisy, cond), still_noise(noisy, KEPT), amount)
        torch.testing.assert_close(found, noise_of(noisy, expected), atol=1e-5, rtol=1e-5)
        return
    sigma = ((1 - KEPT) / KEPT).sqrt()
    still = still_picture(noisy * wide((sigma**2 + 1).sqrt()), sigma)
    found = rescale_guidance(picture_of(noisy, guided), picture_of(noisy, cond), still, amount)
    torch.testing.assert_close(found, picture_of(noisy, expected), atol=1e-5, rtol=1e-5)


def test_all_of_it_gives_v_the_prompts_contrast() -> None:
    noisy, cond, uncond = predictions()
    guided = uncond + 7.0 * (cond - uncond)
    found = rescale_guidance(guided, cond, torch.zeros_like(noisy), 1.0)
    torch.testing.assert_close(found.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    half = rescale_guidance(guided, cond, torch.zeros_like(noisy), 0.5)
    torch.testing.assert_close(half, (found + guided) / 2)


def test_what_is_not_guided_and_none_of_it_change_nothing() -> None:
    noisy, cond, _ = predictions()
    still = still_noise(noisy, KEPT)
    torch.testing.assert_close(rescale_guidance(cond, cond, still, 1.0), cond)
    torch.testing.assert_close(rescale_guidance(5 * cond, cond, still, 0.0), 5 * cond)


def test_pictures_of_a_batch_are_measured_alone_and_half_precision_is_kept() -> None:
    noisy, cond, uncond = predictions()
    guided, still = uncond + 5 * (cond - uncond), still_noise(noisy, KEPT)
    together = rescale_guidance(guided, cond, still, 0.7)
    for place in range(3):
        one = slice(place, place + 1)
        torch.testing.assert_close(together[one], rescale_guidance(guided[one], cond[one], still[one], 0.7))
    assert rescale_guidance(guided.half(), cond.half(), still, 0.7).dtype is torch.float16


def test_a_prediction_without_any_contrast_stays_as_it_is() -> None:
    nothing = torch.zeros(2, 4, 8, 8)
    assert torch.equal(rescale_guidance(nothing, nothing, nothing, 1.0), nothing)
