"""Projectors, uncond and K/V against diffusers and the `ip-adapter` package, with the same random weights."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lib_ipadapter.core.adapter import Adapter
from lib_ipadapter.core.embeds import Features, ImageTokens, combine_tokens, pair_tokens
from lib_ipadapter.core.projections import build_projector
from lib_ipadapter.core.schedule import COND, UNCOND
from lib_ipadapter.library.spec import Kind, ProjectorSpec
from tests.core.random_adapters import (
    describe_adapter,
    random_adapter_tensors,
    random_projector,
    random_projector_spec,
)

from .tolerances import PROJECTION

SMALL: list[tuple[Kind, dict[str, int]]] = [
    ("base", {"input_dim": 96}),
    ("plus", {"input_dim": 96, "dim": 192}),
    ("full_face", {"input_dim": 96}),
    ("faceid", {}),
    ("faceid_portrait", {}),
    ("faceid_plus", {"input_dim": 96}),
    ("faceid_plus_v2", {"input_dim": 96}),
    ("instantid", {"dim": 192}),
]
PUBLISHED_SD1: list[tuple[Kind, dict[str, int]]] = [(kind, {}) for kind, _ in SMALL if kind != "instantid"]
CASES = [pytest.param(k, 128, sizes, id=f"{k}-small") for k, sizes in SMALL] + [
    pytest.param(k, 768, sizes, id=f"{k}-sd1") for k, sizes in PUBLISHED_SD1
]
CLIP_WIDTH, IMAGE_SIZE = 96, 56


def _peer(name: str) -> ModuleType:
    """Import a peer's module, or skip: the `ip-adapter` package itself needs diffusers and transformers."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not importable here: {error}")


def _close(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.1, "a comparison of zeros proves nothing"
    return float((ours - theirs).abs().max()) <= PROJECTION


def _inputs(spec: ProjectorSpec, n: int = 2, length: int = 17) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    vector = torch.randn(n, spec.input_dim, generator=generator)
    sequence = torch.randn(n, length, spec.hidden_dim or spec.input_dim, generator=generator)
    if spec.family == "face_plus":
        return vector, sequence
    return (sequence,) if spec.family in ("resampler", "full_face") else (vector,)


def _adapter(kind: Kind, input_dim: int = CLIP_WIDTH, **sizes: int) -> Adapter:
    """An adapter of three layers, 128 wide tokens."""
    tensors = random_adapter_tensors(kind, 128, (64, 128, 64), input_dim=input_dim, **sizes)
    spec = describe_adapter(kind, tensors)
    parts = {name.removeprefix("image_proj."): t for name, t in tensors.items() if name.startswith("image_proj.")}
    weights = {x: {i: tensors[f"ip_adapter.{i}.to_{x}_ip.weight"] for i in spec.layers} for x in "kv"}
    return Adapter(spec, build_projector(spec.projector, parts), weights["k"], weights["v"])


@pytest.mark.parametrize(("kind", "context_dim", "sizes"), CASES)
@torch.no_grad()
def test_projector_equals_diffusers(kind: Kind, context_dim: int, sizes: dict[str, int]) -> None:
    loaders = _peer("diffusers.loaders.unet")
    spec = random_projector_spec(kind, context_dim, **sizes)
    tensors = random_projector(spec)
    convert = loaders.UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    theirs = convert(None, dict(tensors)).eval()
    ours, inputs = build_projector(spec, tensors), _inputs(spec)
    if spec.family != "face_plus":
        assert _close(ours(*inputs), theirs(*inputs))
        return
    theirs.clip_embeds = inputs[1].unsqueeze(1)
    assert _close(ours(*inputs), theirs(inputs[0]))
    theirs.shortcut = True
    for s_scale in (0.0, 0.6, 1.0, 1.7):
        theirs.shortcut_scale = s_scale
        assert _close(ours(*inputs, shortcut=True, s_scale=s_scale), theirs(inputs[0]))


def _official_face_plus(spec: ProjectorSpec, tensors: dict[str, Tensor], face: Tensor, hidden: Tensor) -> Tensor:
    """The package's own parts put together: its Resampler with each face's MLP tokens for latents."""
    prefix = "perceiver_resampler."
    mlp = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    perceiver = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    latents = _official_projector(replace(spec, family="face_mlp"), mlp)(face)
    resampler_spec = replace(spec, family="resampler", input_dim=spec.hidden_dim)
    return torch.cat(
        [
            _official_projector(resampler_spec, perceiver | {"latents": one.unsqueeze(0)})(view.unsqueeze(0))
            for one, view in zip(latents, hidden, strict=True)
        ]
    )


def _official_projector(spec: ProjectorSpec, tensors: dict[str, Tensor]) -> Any:
    if spec.family == "resampler":
        projector = _peer("ip_adapter.resampler").Resampler(
            dim=spec.dim,
            depth=spec.depth,
            dim_head=64,
            heads=spec.heads,
            num_queries=spec.tokens,
            embedding_dim=spec.input_dim,
            output_dim=spec.output_dim,
        )
    elif spec.family == "linear":
        projector = _peer("ip_adapter.ip_adapter").ImageProjModel(spec.output_dim, spec.input_dim, spec.tokens)
    elif spec.family == "full_face":
        projector = _peer("ip_adapter.ip_adapter").MLPProjModel(spec.output_dim, spec.input_dim)
    else:
        face = _peer("ip_adapter.ip_adapter_faceid")
        projector = face.MLPProjModel(spec.output_dim, spec.input_dim, spec.tokens)
    projector.load_state_dict(tensors, strict=True)
    return projector.eval()


@pytest.mark.parametrize(("kind", "context_dim", "sizes"), CASES)
@torch.no_grad()
def test_projector_equals_the_official_package(kind: Kind, context_dim: int, sizes: dict[str, int]) -> None:
    spec = random_projector_spec(kind, context_dim, **sizes)
    tensors = random_projector(spec)
    inputs = _inputs(spec)
    if spec.family == "face_plus":
        theirs = _official_face_plus(spec, tensors, *inputs)
    else:
        theirs = _official_projector(spec, tensors)(*inputs)
    assert _close(build_projector(spec, tensors)(*inputs), theirs)


@pytest.mark.parametrize("dim_and_heads", [(192, 2), (64, 5)], ids=["narrow", "wide"])
@torch.no_grad()
def test_heads_need_not_fill_the_perceiver(dim_and_heads: tuple[int, int]) -> None:
    """As in the SD2 and Kolors files, whose inner width (12 heads of 64) is not `dim`."""
    dim, heads = dim_and_heads
    spec = random_projector_spec("plus", 128, dim=dim, heads=heads, input_dim=96)
    tensors = random_projector(spec)
    theirs, inputs = _official_projector(spec, tensors), _inputs(spec)
    assert _close(build_projector(spec, tensors)(*inputs), theirs(*inputs))


@torch.no_grad()
def test_weights_stored_in_half_precision_mean_the_same() -> None:
    for kind in ("base", "plus"):
        adapter = _adapter(kind)
        spec = adapter.spec.projector
        stored = {name: tensor.half() for name, tensor in adapter.projector.state_dict().items()}
        theirs = _official_projector(spec, {name: tensor.float() for name, tensor in stored.items()})
        inputs = _inputs(spec)
        assert _close(build_projector(spec, stored).float()(*inputs), theirs(*inputs))


class _Float32Torch:
    """`torch` as the official pipelines see it here: they name float16, the comparison wants float32."""

    float16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _official_pipeline(module: str, cls: str, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Any:
    peer = _peer(module)
    monkeypatch.setattr(peer, "torch", _Float32Torch())
    pipeline = object.__new__(getattr(peer, cls))
    pipeline.device = "cpu"
    pipeline.image_proj_model = _official_projector(adapter.spec.projector, adapter.projector.state_dict())
    return pipeline


def _small_clip() -> tuple[Any, Any]:
    transformers = _peer("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=14,
        projection_dim=80,
        initializer_factor=8.0,
    )
    torch.manual_seed(0)
    encoder = transformers.CLIPVisionModelWithProjection(config).eval()
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return encoder, processor


def _pictures() -> list[Image.Image]:
    return [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]


@torch.no_grad()
def test_pooled_kinds_have_the_official_uncond(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _adapter("base", input_dim=80)
    pipeline = _official_pipeline("ip_adapter.ip_adapter", "IPAdapter", adapter, monkeypatch)
    pipeline.image_encoder, pipeline.clip_image_processor = _small_clip()
    cond, uncond = pipeline.get_image_embeds(_pictures())
    pixels = pipeline.clip_image_processor(images=_pictures(), return_tensors="pt").pixel_values
    assert _close(adapter.project(Features(pooled=pipeline.image_encoder(pixels).image_embeds)), cond)
    assert _close(adapter.project(adapter.zero_features(2)), uncond)


@pytest.mark.parametrize(
    ("kind", "cls"), [("plus", "IPAdapterPlus"), ("full_face", "IPAdapterFull"), ("plus", "IPAdapterPlusXL")]
)
@torch.no_grad()
def test_hidden_kinds_have_the_official_uncond(kind: Kind, cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _adapter(kind)
    pipeline = _official_pipeline("ip_adapter.ip_adapter", cls, adapter, monkeypatch)
    pipeline.image_encoder, pipeline.clip_image_processor = _small_clip()
    cond, uncond = pipeline.get_image_embeds(_pictures())
    pixels = pipeline.clip_image_processor(images=_pictures(), return_tensors="pt").pixel_values

    def hidden(x: Tensor) -> Features:
        return Features(hidden=pipeline.image_encoder(x, output_hidden_states=True).hidden_states[-2])

    assert _close(adapter.project(hidden(pixels)), cond)
    assert _close(adapter.project(hidden(torch.zeros_like(pixels))), uncond)
    black = adapter.project(hidden(torch.full_like(pixels, -1.8)))
    assert (black - uncond).abs().max() > 0.01, "a black picture is another uncond"


@torch.no_grad()
def test_face_kinds_have_the_official_uncond(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _adapter("faceid", input_dim=512)
    pipeline = _official_pipeline("ip_adapter.ip_adapter_faceid", "IPAdapterFaceID", adapter, monkeypatch)
    face = F.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(2)), dim=-1)
    cond, uncond = pipeline.get_image_embeds(face)
    assert _close(adapter.project(Features(face=face)), cond)
    assert _close(adapter.project(adapter.zero_features(2)), uncond)


def _diffusers_attention(adapter: Adapter, key_id: int) -> tuple[Any, Any]:
    """A cross-attention of diffusers with its IP-Adapter processor, loaded from the adapter's layer."""
    peer = _peer("diffusers.models.attention_processor")
    width, context_dim = adapter.spec.layers[key_id], adapter.spec.context_dim
    torch.manual_seed(7)
    processor = peer.IPAdapterAttnProcessor2_0(width, context_dim, num_tokens=(adapter.spec.tokens,), scale=1.0)
    processor.to_k_ip[0].weight.data = adapter.to_k[key_id]
    processor.to_v_ip[0].weight.data = adapter.to_v[key_id]
    attention = peer.Attention(query_dim=width, cross_attention_dim=context_dim, heads=2, dim_head=width // 2)
    plain = peer.Attention(query_dim=width, cross_attention_dim=context_dim, heads=2, dim_head=width // 2)
    plain.load_state_dict(attention.state_dict())
    attention.set_processor(processor)
    return attention.eval(), plain.eval()


def _added(attention: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What the image attention adds to the attention's output: to_out without its bias, over softmax(q K^T) V."""
    q, k, v = (attention.head_to_batch_dim(t) for t in (attention.to_q(x), keys, values))
    out = attention.batch_to_head_dim(F.scaled_dot_product_attention(q, k, v))
    return F.linear(out, attention.to_out[0].weight)


@pytest.mark.parametrize("key_id", [1, 3, 5])
@torch.no_grad()
def test_keys_and_values_act_as_in_diffusers(key_id: int) -> None:
    """Several references are concatenated there, (rows, references, tokens, width); so are ours."""
    adapter = _adapter("base")
    attention, plain = _diffusers_attention(adapter, key_id)
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(2, 9, adapter.spec.layers[key_id], generator=generator)
    text = torch.randn(2, 77, 128, generator=generator)
    cond = adapter.project(Features(pooled=torch.randn(3, CLIP_WIDTH, generator=generator)))
    uncond = adapter.project(adapter.zero_features(1))
    theirs = attention(x, (text, [torch.stack((cond, uncond.expand(3, -1, -1)))])) - plain(x, text)
    keys, values = adapter.layer_kv(pair_tokens(cond, uncond, "concat"))[key_id]
    order = [COND, UNCOND]
    assert _close(_added(plain, x, keys[order], values[order]), theirs)
    assert (_added(plain, x, values[order], keys[order]) - theirs).abs().max() > 0.01, "K and V are told apart"
    assert (_added(plain, x, keys[order[::-1]], values[order[::-1]]) - theirs).abs().max() > 0.01, "so are the rows"


@torch.no_grad()
def test_combining_follows_the_references_alone() -> None:
    """Through the projector and the layers: order never matters, identical references act as one."""
    adapter = _adapter("plus")
    _, plain = _diffusers_attention(adapter, 3)
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(3, 17, CLIP_WIDTH, generator=generator)
    x = torch.randn(1, 9, adapter.spec.layers[3], generator=generator)

    def added(pictures: Tensor, how: Any) -> Tensor:
        tokens = combine_tokens(adapter.project(Features(hidden=pictures)), how)
        keys, values = adapter.layer_kv(ImageTokens(tokens, tokens))[3]
        return _added(plain, x, keys[:1], values[:1])

    for how in ("concat", "average"):
        assert _close(added(hidden, how), added(hidden[[2, 0, 1]], how))
        assert _close(added(hidden[:1].repeat(4, 1, 1), how), added(hidden[:1], how))
        assert (added(hidden, how) - added(hidden[:1], how)).abs().max() > 0.01
