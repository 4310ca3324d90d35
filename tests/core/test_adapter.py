"""Adapters: the right features, the official uncond, K and V as the matrices say, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.adapter import Adapter, load_adapter
from lib_ipadapter.core.embeds import Features, ImageTokens, pair_tokens
from lib_ipadapter.core.schedule import COND, UNCOND
from lib_ipadapter.library.errors import AdapterFileError, IPAdapterError, WrongEncoderError
from lib_ipadapter.library.spec import Kind

from .random_adapters import Layout, describe_adapter, random_adapter_tensors, save_adapter

KINDS: tuple[Kind, ...] = get_args(Kind)
WIDTHS = (32, 64, 128)


def _tensors(kind: Kind) -> dict[str, Tensor]:
    input_dim = 0 if kind in ("instantid", "faceid_portrait_unnorm") or kind.startswith("faceid") else 96
    return random_adapter_tensors(kind, 64, WIDTHS, dim=64, depth=2, input_dim=input_dim)


def _load(kind: Kind, folder: Path, layout: Layout = "flat", dtype: torch.dtype = torch.float32) -> Adapter:
    tensors = {name: tensor.to(dtype) for name, tensor in _tensors(kind).items()}
    return load_adapter(describe_adapter(kind, tensors), save_adapter(folder / "adapter", tensors, layout))


def _features(adapter: Adapter, n: int = 2) -> Features:
    """Every field filled, each with the width this adapter would want of it."""
    spec, generator = adapter.spec.projector, torch.Generator().manual_seed(3)
    hidden = torch.randn(n, 10, spec.hidden_dim or spec.input_dim, generator=generator)
    vector = torch.randn(n, spec.input_dim, generator=generator)
    return Features(pooled=vector, hidden=hidden, face=vector)


def _tokens(width: int, n: int = 5) -> ImageTokens:
    generator = torch.Generator().manual_seed(4)
    return ImageTokens(torch.randn(1, n, width, generator=generator), torch.randn(1, n, width, generator=generator))


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_projects_from_every_container(kind: Kind, layout: Layout, tmp_path: Path) -> None:
    adapter = _load(kind, tmp_path, layout)
    tokens = adapter.project(_features(adapter))
    expected = 10 if kind == "full_face" else adapter.spec.tokens
    assert tokens.shape == (2, expected, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_features_of_the_kind_matter(kind: Kind, tmp_path: Path) -> None:
    adapter = _load(kind, tmp_path)
    features = _features(adapter)
    tokens = adapter.project(features)
    used = {"pooled": ["pooled"], "hidden": ["hidden"], "face_hidden": ["face", "hidden"]}.get(
        adapter.spec.feature, ["face"]
    )
    for name in ("pooled", "hidden", "face"):
        changed = adapter.project(replace(features, **{name: getattr(features, name).neg()}))
        assert torch.equal(changed, tokens) == (name not in used)
        if name in used:
            with pytest.raises(WrongEncoderError, match=f"{name} features and got none"):
                adapter.project(replace(features, **{name: None}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_width_is_told_with_both_numbers(kind: Kind, tmp_path: Path) -> None:
    adapter = _load(kind, tmp_path)
    width = adapter.spec.projector.input_dim
    wrong = Features(pooled=torch.zeros(1, 77), hidden=torch.zeros(1, 10, 77), face=torch.zeros(1, 77))
    with pytest.raises(WrongEncoderError, match=rf"needs {width}-wide \w+ features and got 77"):
        adapter.project(wrong)


def test_the_shortcut_is_v2s_alone(tmp_path: Path) -> None:
    first, second = _load("faceid_plus", tmp_path), _load("faceid_plus_v2", tmp_path)
    features = _features(first)
    assert torch.equal(first.project(features, s_scale=3.0), first.project(features))
    at_zero, at_one = second.project(features, s_scale=0.0), second.project(features)
    assert torch.allclose(at_one, at_zero + first.project(features), atol=1e-6)


@pytest.mark.parametrize("kind", ["base", "faceid", "faceid_portrait", "faceid_portrait_unnorm", "instantid"])
def test_zero_features_are_zero_embeddings(kind: Kind, tmp_path: Path) -> None:
    adapter = _load(kind, tmp_path)
    features = adapter.zero_features(2)
    given = [x for x in (features.pooled, features.hidden, features.face) if x is not None]
    assert [tuple(x.shape) for x in given] == [(2, adapter.spec.projector.input_dim)]
    assert not given[0].any()
    tokens = adapter.project(features)
    assert tokens.shape == (2, adapter.spec.tokens, 64)
    assert tokens.any(), "zero embeddings do not make zero tokens"


@pytest.mark.parametrize("kind", ["plus", "full_face", "faceid_plus", "faceid_plus_v2"])
def test_kinds_that_read_hidden_states_have_no_zero_embedding(kind: Kind, tmp_path: Path) -> None:
    adapter = _load(kind, tmp_path)
    with pytest.raises(IPAdapterError, match="all-zero pixel tensor"):
        adapter.zero_features(1)
    hidden = _features(adapter, 1).hidden
    features = adapter.zero_features(1, hidden)
    assert features.hidden is hidden
    assert (features.face is None) == (not kind.startswith("faceid"))
    assert features.face is None or not features.face.any()
    adapter.project(features)


def test_keys_and_values_are_the_matrices_applied_to_cond_and_uncond(tmp_path: Path) -> None:
    adapter, stored, tokens = _load("base", tmp_path), _tensors("base"), _tokens(64)
    layers = adapter.layer_kv(tokens)
    assert list(layers) == [1, 3, 5]
    for key_id, (keys, values) in layers.items():
        assert keys.shape == values.shape == (2, 5, WIDTHS[key_id // 2])
        for x, result in (("k", keys), ("v", values)):
            weight = stored[f"ip_adapter.{key_id}.to_{x}_ip.weight"]
            assert torch.allclose(result[COND], tokens.cond[0] @ weight.T, atol=1e-5)
            assert torch.allclose(result[UNCOND], tokens.uncond[0] @ weight.T, atol=1e-5)


def test_zero_uncond_tokens_give_zero_keys_and_values(tmp_path: Path) -> None:
    adapter = _load("base", tmp_path)
    for keys, values in adapter.layer_kv(pair_tokens(_tokens(64).cond, None, "concat")).values():
        assert not keys[UNCOND].any()
        assert not values[UNCOND].any()
        assert values[COND].any()


def test_stored_halves_stay_halves_and_are_multiplied_in_float32(tmp_path: Path) -> None:
    adapter, tokens = _load("base", tmp_path, dtype=torch.float16), _tokens(64)
    layers = adapter.layer_kv(tokens)
    assert {weight.dtype for weight in (*adapter.to_k.values(), *adapter.to_v.values())} == {torch.float16}
    for key_id, (keys, _) in layers.items():
        assert keys.dtype == torch.float32
        assert torch.allclose(keys[COND], tokens.cond[0] @ adapter.to_k[key_id].float().T, atol=1e-5)
    halves = adapter.layer_kv(tokens, dtype=torch.float16)
    assert all(k.dtype == v.dtype == torch.float16 for k, v in halves.values())
    assert all(torch.equal(halves[key_id][1], layers[key_id][1].half()) for key_id in layers)


def test_nothing_but_keys_and_values_is_kept(tmp_path: Path) -> None:
    adapter = _load("base", tmp_path)
    for pair in adapter.layer_kv(_tokens(64)).values():
        for tensor in pair:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert not tensor.requires_grad


def test_one_layer_at_a_time_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the float32 copies of half-precision weights alive at once."""
    adapter = _load("base", tmp_path, dtype=torch.float16)
    alive, most = 0, 0
    original = Tensor.to

    class Widened(Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def watch(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        nonlocal alive, most
        result = original(tensor, *args, **kwargs)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if tensor.dtype == torch.float16 and result.dtype == torch.float32:
            alive, most = alive + 1, max(most, alive + 1)
            return result.as_subclass(Widened)
        return result

    monkeypatch.setattr(Tensor, "to", watch)
    layers = adapter.layer_kv(_tokens(64))
    assert most in (1, 2), "weights in float32 at once"
    assert len(layers) == 3


def test_the_hosts_autocast_changes_nothing(tmp_path: Path) -> None:
    adapter = _load("faceid_plus_v2", tmp_path)
    features, tokens = _features(adapter), _tokens(64)
    expected, layers = adapter.project(features), adapter.layer_kv(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adapter.project(features), expected)
        assert torch.equal(adapter.layer_kv(tokens)[5][0], layers[5][0])


def test_inference_mode_may_begin_and_end_anywhere(tmp_path: Path) -> None:
    with torch.inference_mode():
        inside = _load("plus", tmp_path)
    outside = _load("plus", tmp_path)
    features = _features(inside)
    expected = outside.project(features)
    assert torch.equal(inside.project(features), expected)
    with torch.inference_mode():
        assert torch.equal(outside.project(features), expected)
        assert torch.equal(inside.project(features), expected)


def test_projector_runs_in_the_dtype_it_was_loaded_in(tmp_path: Path) -> None:
    tensors = _tensors("plus")
    path = save_adapter(tmp_path / "adapter", tensors)
    adapter = load_adapter(describe_adapter("plus", tensors), path, dtype=torch.bfloat16)
    assert adapter.project(_features(adapter)).dtype == torch.bfloat16


def test_the_lora_inside_is_not_read(tmp_path: Path) -> None:
    tensors = random_adapter_tensors("faceid", 64, WIDTHS, lora_rank=4)
    path = save_adapter(tmp_path / "adapter", tensors)
    spec = describe_adapter("faceid", tensors)
    assert "ip_adapter.0.to_q_lora.down.weight" in spec.tensors
    spec = replace(spec, tensors={name: "absent" if "lora" in name else name for name in tensors})
    assert load_adapter(spec, path).to_k.keys() == {1, 3, 5}


def test_stored_names_are_followed(tmp_path: Path) -> None:
    tensors = _tensors("base")
    renamed = {name: f"module.{name}" for name in tensors}
    path = save_adapter(tmp_path / "adapter", {renamed[name]: tensor for name, tensor in tensors.items()})
    adapter = load_adapter(replace(describe_adapter("base", tensors), tensors=renamed), path)
    assert torch.equal(adapter.to_v[3], tensors["ip_adapter.3.to_v_ip.weight"])


def test_missing_and_misshapen_layers_are_named(tmp_path: Path) -> None:
    tensors = _tensors("base")
    spec, path = describe_adapter("base", tensors), save_adapter(tmp_path / "adapter", tensors)
    fewer = {name: name for name in tensors if name != "ip_adapter.5.to_v_ip.weight"}
    with pytest.raises(AdapterFileError, match=r"lacks 1 attention tensors \(ip_adapter\.5\.to_v_ip"):
        load_adapter(replace(spec, tensors=fewer), path)
    with pytest.raises(AdapterFileError, match=r"ip_adapter\.3\.to_k_ip\.weight is \(64, 64\), expected \(96, 64\)"):
        load_adapter(replace(spec, layers={1: 32, 3: 96, 5: 128}), path)
