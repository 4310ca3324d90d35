"""Getting at guided predictions: what is handed on, and that letting go leaves everything as it was found."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lib_ipadapter.hosts.guidance import CombiningGuidance, SamplingGuidance

NOISE = torch.Generator().manual_seed(5)
X_OUT = torch.randn(3, 4, 8, 8, generator=NOISE)
"""Two prompts of AND, and the negative."""
NOISY = torch.randn(3, 4, 8, 8, generator=NOISE)
COMPOSITION = [[(0, 0.7), (1, 0.5)]]


class Denoiser:
    """What A1111's has of it."""

    def combine_denoised(self, x_out: Tensor, composition: Any, uncond: Tensor, scale: float) -> Tensor:
        base = x_out[-1:]
        return base + sum((x_out[row] - base) * weight * scale for row, weight in composition[0])

    def combine_denoised_for_edit_model(self, x_out: Tensor, scale: float) -> Tensor:
        return x_out[:1] * scale


class Seen:
    """Keeps what it was given, and doubles the guided prediction."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, guided: Tensor, cond: Tensor, still: Tensor) -> Tensor:
        self.calls.append((guided, cond, still))
        return 2 * guided


def params(denoiser: Any, level: float = 3.0) -> Any:
    return SimpleNamespace(denoiser=denoiser, x=NOISY, sigma=torch.full((3,), level))


def test_of_and_the_weighted_sum_is_what_the_prompt_predicts_alone() -> None:
    denoiser, seen = Denoiser(), Seen()
    guidance = CombiningGuidance(seen)
    guidance.begin_step(params(denoiser))
    plain = Denoiser()
    arguments = X_OUT, COMPOSITION, X_OUT[-1:]
    torch.testing.assert_close(denoiser.combine_denoised(*arguments, 7.0), 2 * plain.combine_denoised(*arguments, 7.0))
    guided, cond, still = seen.calls[0]
    torch.testing.assert_close(guided, plain.combine_denoised(*arguments, 7.0))
    torch.testing.assert_close(cond, plain.combine_denoised(*arguments, 1.0))
    torch.testing.assert_close(still, NOISY[-1:] / 10)
    assert torch.equal(denoiser.combine_denoised(*arguments, 1.0), plain.combine_denoised(*arguments, 1.0))
    denoiser.combine_denoised_for_edit_model(X_OUT, 3.0)
    torch.testing.assert_close(seen.calls[1][1], X_OUT[:1])
    assert len(seen.calls) == 2, "at a scale of 1 there is nothing to rescale"


def test_timesteps_are_looked_up_where_the_sampler_works_with_them() -> None:
    denoiser, seen = Denoiser(), Seen()
    denoiser.alphas = torch.linspace(1.0, 0.0, 1000)  # type: ignore[attr-defined]
    guidance = CombiningGuidance(seen)
    guidance.begin_step(params(denoiser, 250.0))
    denoiser.combine_denoised(X_OUT, COMPOSITION, X_OUT[-1:], 7.0)
    torch.testing.assert_close(seen.calls[0][2], NOISY[-1:] * (250 / 999) ** 0.5)


def test_letting_go_puts_the_denoiser_back_and_leaves_others_wrappers() -> None:
    first, second, seen = Denoiser(), Denoiser(), Seen()
    own = vars(first)["combine_denoised"] = first.combine_denoised
    guidance = CombiningGuidance(seen)
    guidance.begin_step(params(first))
    assert vars(first)["combine_denoised"] is not own
    guidance.begin_step(params(second))
    assert vars(first) == {"combine_denoised": own}
    ours = second.combine_denoised

    def others(*args: Any) -> Tensor:
        return ours(*args)

    vars(second)["combine_denoised"] = others
    guidance.remove()
    guidance.remove()
    assert vars(second) == {"combine_denoised": others}
    arguments = X_OUT, COMPOSITION, X_OUT[-1:], 7.0
    torch.testing.assert_close(second.combine_denoised(*arguments), Denoiser().combine_denoised(*arguments))
    assert not seen.calls


class Patcher:
    """What the Forge family's has of it."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self.options = options or {"functions": []}

    def clone(self) -> Patcher:
        return Patcher(copy.deepcopy(self.options))

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.options["functions"].append(function)


class Model:
    """Weakly referred to, as the host's is."""

    def __init__(self) -> None:
        self.forge_objects = SimpleNamespace(unet=Patcher())


def arguments(**more: Any) -> dict[str, Any]:
    cond, uncond = X_OUT[:1], X_OUT[1:2]
    return {"denoised": X_OUT[2:], "cond_denoised": cond, "uncond_denoised": uncond, "cond": [{"strength": 1.0}],
            "input": NOISY[:1], "sigma": torch.tensor([3.0]), **more}  # fmt: skip


def test_the_forge_familys_function_is_on_a_clone_alone_and_a_later_clone_forgets_it() -> None:
    model, seen = Model(), Seen()
    before = model.forge_objects.unet
    guidance = SamplingGuidance(model, seen)
    assert before.options == {"functions": []}
    later = model.forge_objects.unet.clone()
    (function,) = later.options["functions"]
    assert torch.equal(function(arguments()), 2 * X_OUT[2:])
    torch.testing.assert_close(seen.calls[0][2], NOISY[:1] / 10)
    assert torch.equal(seen.calls[0][1], X_OUT[:1])
    function(arguments(cond=[{"strength": 0.7}, {"strength": 0.5}]))
    torch.testing.assert_close(seen.calls[1][1], X_OUT[1:2] + 1.2 * (X_OUT[:1] - X_OUT[1:2]))
    assert torch.equal(function(arguments(uncond_denoised=None)), X_OUT[2:]), "not guided"
    guidance.remove()
    guidance.remove()
    assert model.forge_objects.unet is before
    assert torch.equal(function(arguments()), X_OUT[2:])
    assert len(seen.calls) == 2


def test_a_patcher_that_another_script_put_in_place_stays() -> None:
    model = Model()
    guidance = SamplingGuidance(model, Seen())
    other = model.forge_objects.unet = model.forge_objects.unet.clone()
    guidance.remove()
    assert model.forge_objects.unet is other
