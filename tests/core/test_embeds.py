"""Combining references: what the attention sees must follow from them alone, not from their order or number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lib_ipadapter.core.embeds import combine_tokens, pair_tokens

EXACT_UP_TO_ROUNDING = 1e-6


def _tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 64, generator=torch.Generator().manual_seed(seed))


def _attention(tokens: Tensor) -> Tensor:
    query = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(9))
    return F.scaled_dot_product_attention(query, tokens, tokens)


def test_concat_keeps_every_token_in_order() -> None:
    tokens = _tokens(3)
    combined = combine_tokens(tokens, "concat")
    assert combined.shape == (1, 12, 64)
    assert torch.equal(combined[0, 4:8], tokens[1])


def test_average_is_the_mean_of_tokens() -> None:
    tokens = _tokens(3)
    combined = combine_tokens(tokens, "average")
    assert combined.shape == (1, 4, 64)
    assert torch.allclose(combined[0], (tokens[0] + tokens[1] + tokens[2]) / 3, atol=EXACT_UP_TO_ROUNDING)


def test_the_order_of_references_changes_nothing() -> None:
    tokens = _tokens(3)
    for how in ("concat", "average"):
        forth, back = combine_tokens(tokens, how), combine_tokens(tokens.flip(0), how)
        assert torch.allclose(_attention(forth), _attention(back), atol=EXACT_UP_TO_ROUNDING)


def test_identical_references_act_as_one() -> None:
    one = _tokens(1)
    assert torch.allclose(combine_tokens(one.repeat(4, 1, 1), "average"), one, atol=EXACT_UP_TO_ROUNDING)
    four = _attention(combine_tokens(one.repeat(4, 1, 1), "concat"))
    assert torch.allclose(four, _attention(one), atol=EXACT_UP_TO_ROUNDING)


def test_different_references_do_not_act_as_one() -> None:
    tokens = _tokens(2)
    for how in ("concat", "average"):
        both = _attention(combine_tokens(tokens, how))
        assert (both - _attention(tokens[:1])).abs().max() > 0.01


def test_one_uncond_serves_every_reference() -> None:
    cond, uncond = _tokens(3), _tokens(1, seed=1)
    concat = pair_tokens(cond, uncond, "concat")
    assert concat.cond.shape == concat.uncond.shape == (1, 12, 64)
    assert torch.allclose(_attention(concat.uncond), _attention(uncond), atol=EXACT_UP_TO_ROUNDING)
    average = pair_tokens(cond, uncond, "average")
    assert torch.allclose(average.uncond, uncond, atol=EXACT_UP_TO_ROUNDING)


def test_an_uncond_for_each_reference_is_kept() -> None:
    cond, uncond = _tokens(2), _tokens(2, seed=1)
    pair = pair_tokens(cond, uncond, "concat")
    assert torch.equal(pair.uncond, uncond.reshape(1, 8, 64))


def test_zero_tokens_give_no_image_attention() -> None:
    pair = pair_tokens(_tokens(2), None, "concat")
    assert pair.uncond.shape == pair.cond.shape
    assert not _attention(pair.uncond).any()
    assert _attention(pair.cond).any()
