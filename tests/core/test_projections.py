"""Projectors: official names, shapes, damage named, and nothing of the host in between."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.core.projections import build_projector
from lib_ipadapter.library.errors import AdapterFileError
from lib_ipadapter.library.spec import Kind, ProjectorSpec

from .random_adapters import random_projector, random_projector_spec

KINDS: tuple[Kind, ...] = get_args(Kind)


def _spec(kind: Kind) -> ProjectorSpec:
    return random_projector_spec(
        kind, 128, dim=64, depth=2, input_dim=512 if "face" in kind or kind == "instantid" else 96
    )


def _inputs(spec: ProjectorSpec, n: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(n, spec.input_dim, generator=generator)
    sequence = torch.randn(n, 10, spec.hidden_dim or spec.input_dim, generator=generator)
    if spec.family == "face_plus":
        return first, sequence
    return (sequence,) if spec.family in ("resampler", "full_face") else (first,)


@pytest.mark.parametrize("kind", KINDS)
def test_official_names_load_strictly_and_without_a_copy(kind: Kind) -> None:
    spec = _spec(kind)
    tensors = random_projector(spec)
    projector = build_projector(spec, tensors)
    projector.load_state_dict(tensors, strict=True)
    state = projector.state_dict()
    assert state.keys() == tensors.keys()
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())
    assert not any(parameter.requires_grad for parameter in projector.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_the_described_shape(kind: Kind) -> None:
    spec = _spec(kind)
    tokens = build_projector(spec, random_projector(spec))(*_inputs(spec))
    expected = 10 if spec.family == "full_face" else spec.tokens
    assert tokens.shape == (2, expected, 128)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("kind", KINDS)
def test_references_do_not_mix(kind: Kind) -> None:
    spec = _spec(kind)
    projector = build_projector(spec, random_projector(spec))
    inputs = _inputs(spec)
    second = projector(*(x[1:] for x in inputs))
    assert torch.allclose(projector(*inputs)[1:], second, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "context_dim", "expected"),
    [
        ("plus", 768, {"dim": 768, "heads": 12}),
        ("plus", 2048, {"dim": 1280, "heads": 20}),
        ("instantid", 2048, {"dim": 1280, "heads": 20, "input_dim": 512}),
        ("faceid_plus_v2", 768, {"dim": 768, "heads": 12, "hidden_dim": 1280}),
        ("faceid_plus_v2", 2048, {"dim": 2048, "heads": 32, "hidden_dim": 1280}),
    ],
)
def test_published_sizes_build(kind: Kind, context_dim: int, expected: dict[str, int]) -> None:
    spec = random_projector_spec(kind, context_dim, depth=1)
    assert {name: getattr(spec, name) for name in expected} == expected
    assert build_projector(spec, random_projector(spec))(*_inputs(spec)).shape == (2, spec.tokens, context_dim)


def test_inner_widths_other_than_the_perceivers_own_build() -> None:
    """SD2's plus has dim 1024 with 12 heads, Kolors' 2048 with 12: the heads' width is not the Perceiver's."""
    for context_dim, dim, input_dim in ((1024, 1024, 1280), (2048, 2048, 1024)):
        spec = random_projector_spec("plus", context_dim, dim=dim, heads=12, depth=1, input_dim=input_dim)
        projector = build_projector(spec, random_projector(spec))
        assert projector.state_dict()["layers.0.0.to_q.weight"].shape == (768, dim)
        assert projector(*_inputs(spec)).shape == (2, 16, context_dim)


def test_one_face_vector_enters_the_resampler_as_a_sequence_of_one() -> None:
    spec = _spec("instantid")
    projector = build_projector(spec, random_projector(spec))
    face = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    assert torch.equal(projector(face), projector(face.unsqueeze(1)))


def test_shortcut_adds_the_scaled_perceiver_to_the_faces_tokens() -> None:
    spec = _spec("faceid_plus_v2")
    projector = build_projector(spec, random_projector(spec))
    face, hidden = _inputs(spec)
    refined = projector(face, hidden)
    tokens = projector(face, hidden, shortcut=True, s_scale=0.0)
    assert (tokens - refined).abs().max() > 0.1
    for s_scale in (0.5, 1.0, 2.0):
        result = projector(face, hidden, shortcut=True, s_scale=s_scale)
        assert torch.allclose(result, tokens + s_scale * refined, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_close(kind: Kind) -> None:
    """bfloat16, because older torch has no float16 products on the CPU."""
    spec = _spec(kind)
    tensors = {name: tensor.bfloat16() for name, tensor in random_projector(spec).items()}
    half = build_projector(spec, tensors)
    exact = build_projector(spec, {name: tensor.float() for name, tensor in tensors.items()})
    inputs = _inputs(spec)
    result = half(*(x.bfloat16() for x in inputs))
    assert result.dtype == torch.bfloat16
    assert (result.float() - exact(*inputs)).abs().mean() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_replaces_torch_modules_changes_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec(kind)
    tensors = random_projector(spec)
    expected = build_projector(spec, tensors)(*_inputs(spec))

    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("a projector went through the host's patch")

    monkeypatch.setattr(nn.Linear, "forward", refuse)
    monkeypatch.setattr(nn.LayerNorm, "forward", refuse)
    monkeypatch.setattr(nn, "Linear", refuse)
    monkeypatch.setattr(nn, "LayerNorm", refuse)
    assert torch.equal(build_projector(spec, tensors)(*_inputs(spec)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(kind: Kind) -> None:
    spec = _spec(kind)
    tensors = random_projector(spec)
    for name in tensors:
        with pytest.raises(AdapterFileError, match=f"lacks {name}"):
            build_projector(spec, {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(AdapterFileError, match=r"1 unknown tensors \(pos_emb\.weight"):
        build_projector(spec, tensors | {"pos_emb.weight": torch.ones(1)})
    with pytest.raises(AdapterFileError, match=r"expected \("):
        build_projector(replace(spec, output_dim=192), tensors)
