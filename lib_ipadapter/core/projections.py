"""Projectors: the small networks that turn an encoder's features into image tokens. Built by `core.adapter`.

Parameter names are the official ones (without `image_proj.`), so a published projector loads as it is. Sizes that a
`ProjectorSpec` does not carry (the hidden width of an MLP) are read from the tensors. Formulas: IP-Adapter's own
`ip_adapter.py` (ImageProjModel, MLPProjModel), `resampler.py` (Resampler) and `ip_adapter_faceid.py` (MLPProjModel,
ProjPlusModel).

Linear and layer norm are our own modules over `torch.nn.functional`: hosts replace `torch.nn.Linear` and
`torch.nn.LayerNorm` (or their `forward`) to cast or patch the UNet, and projectors are no part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..library.errors import AdapterFileError
from ..library.spec import ProjectorFamily, ProjectorSpec

HEAD_WIDTH = 64


def _parameter(*shape: int) -> nn.Parameter:
    """Return a parameter without memory, to be replaced by the file's tensor. Nothing here is ever trained."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """`x @ weight.T + bias`."""

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = _parameter(out_width, in_width)
        self.bias = _parameter(out_width) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, epsilon 1e-5 as in torch.nn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _parameter(width)
        self.bias = _parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class LinearProjector(nn.Module):
    """`linear`: one pooled vector to `tokens` tokens (official ImageProjModel)."""

    def __init__(self, tokens: int, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = Linear(input_dim, tokens * output_dim)
        self.norm = LayerNorm(output_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, input) -> (n, tokens, output): LN(reshape(W x + b))."""
        return self.norm(self.proj(pooled).unflatten(-1, (self.tokens, -1)))


class FullFaceProjector(nn.Module):
    """`full_face`: every hidden token becomes an image token (official MLPProjModel of ip_adapter.py)."""

    def __init__(self, input_dim: int, mlp_dim: int, output_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            Linear(input_dim, mlp_dim), nn.GELU(), Linear(mlp_dim, output_dim), LayerNorm(output_dim)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, seq, input) -> (n, seq, output): LN(W2 gelu(W1 x))."""
        return self.proj(hidden)


class _FaceTokens(nn.Module):
    """What both face projectors begin with: LN(reshape(W2 gelu(W1 x)))."""

    def __init__(self, tokens: int, input_dim: int, mlp_dim: int, output_dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(Linear(input_dim, mlp_dim), nn.GELU(), Linear(mlp_dim, tokens * output_dim))
        self.norm = LayerNorm(output_dim)

    def embed(self, face: Tensor) -> Tensor:
        """(n, input) -> (n, tokens, output)."""
        return self.norm(self.proj(face).unflatten(-1, (self.tokens, -1)))


class FaceProjector(_FaceTokens):
    """`face_mlp`: a face embedding to `tokens` tokens (official MLPProjModel of ip_adapter_faceid.py)."""

    def forward(self, face: Tensor) -> Tensor:
        """(n, input) -> (n, tokens, output)."""
        return self.embed(face)


class PerceiverAttention(nn.Module):
    """Latents attend to the features and to themselves (official PerceiverAttention)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.to_q = Linear(dim, heads * HEAD_WIDTH, bias=False)
        self.to_kv = Linear(dim, 2 * heads * HEAD_WIDTH, bias=False)
        self.to_out = Linear(heads * HEAD_WIDTH, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """(n, seq, dim), (n, tokens, dim) -> (n, tokens, dim).

        softmax(q k^T / sqrt(64)) v with keys from features and latents; q and k are scaled before the product and the
        softmax is taken in float32, so that float16 neither overflows nor loses the small weights.
        """
        latents = self.norm2(latents)
        keys, values = self.to_kv(torch.cat((self.norm1(features), latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (self._by_head(x) for x in (self.to_q(latents), keys, values))
        scale = HEAD_WIDTH**-0.25
        scores = (q * scale) @ (k * scale).transpose(-1, -2)
        attended = scores.float().softmax(dim=-1).to(v.dtype) @ v
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        return x.reshape(n, length, self.heads, HEAD_WIDTH).transpose(1, 2)


class _Perceiver(nn.Module):
    """Latents refined by the features in `depth` rounds of attention and feed-forward."""

    def __init__(self, spec: ProjectorSpec, feature_dim: int, feed_forward_dim: int) -> None:
        super().__init__()
        dim = spec.dim
        self.proj_in = Linear(feature_dim, dim)
        self.layers = nn.ModuleList()
        for _ in range(spec.depth):
            widen, narrow = Linear(dim, feed_forward_dim, bias=False), Linear(feed_forward_dim, dim, bias=False)
            feed_forward = nn.Sequential(LayerNorm(dim), widen, nn.GELU(), narrow)
            self.layers.append(nn.ModuleList((PerceiverAttention(dim, spec.heads), feed_forward)))
        self.proj_out = Linear(dim, spec.output_dim)
        self.norm_out = LayerNorm(spec.output_dim)

    def refine(self, latents: Tensor, features: Tensor) -> Tensor:
        """(n, tokens, dim), (n, seq, feature) -> (n, tokens, output)."""
        features = self.proj_in(features)
        for layer in self.layers:
            attention, feed_forward = cast("nn.ModuleList", layer)
            latents = latents + attention(features, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class Resampler(_Perceiver):
    """`resampler`: learned latents over CLIP's hidden states, or over one raw face vector (official Resampler)."""

    def __init__(self, spec: ProjectorSpec, feed_forward_dim: int) -> None:
        super().__init__(spec, spec.input_dim, feed_forward_dim)
        self.latents = _parameter(1, spec.tokens, spec.dim)

    def forward(self, features: Tensor) -> Tensor:
        """(n, seq, input), or (n, input) for one vector each, -> (n, tokens, output)."""
        if features.dim() == 2:
            features = features.unsqueeze(1)
        return self.refine(self.latents.expand(features.shape[0], -1, -1), features)


class FacePerceiver(_Perceiver):
    """The Perceiver inside `face_plus`, whose latents are the face's tokens (official FacePerceiverResampler)."""

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """(n, tokens, dim), (n, seq, feature) -> (n, tokens, output)."""
        return self.refine(latents, features)


class FacePlusProjector(_FaceTokens):
    """`face_plus`: the face's tokens query CLIP's view of it (official ProjPlusModel)."""

    def __init__(self, spec: ProjectorSpec, mlp_dim: int, feed_forward_dim: int) -> None:
        super().__init__(spec.tokens, spec.input_dim, mlp_dim, spec.dim)
        self.perceiver_resampler = FacePerceiver(spec, spec.hidden_dim, feed_forward_dim)

    def forward(self, face: Tensor, hidden: Tensor, *, shortcut: bool = False, s_scale: float = 1.0) -> Tensor:
        """(n, input), (n, seq, hidden) -> (n, tokens, output).

        x = MLP(face), r = perceiver(x, hidden); r without `shortcut` (FaceID-Plus), x + s_scale * r with it (V2).
        """
        tokens = self.embed(face)
        refined = self.perceiver_resampler(tokens, hidden)
        return tokens + s_scale * refined if shortcut else refined


Tensors = Mapping[str, Tensor]
_BUILDERS: dict[ProjectorFamily, Callable[[ProjectorSpec, Tensors], nn.Module]] = {
    "linear": lambda s, _: LinearProjector(s.tokens, s.input_dim, s.output_dim),
    "resampler": lambda s, t: Resampler(s, _rows(t, "layers.0.1.1.weight")),
    "full_face": lambda s, t: FullFaceProjector(s.input_dim, _rows(t, "proj.0.weight"), s.output_dim),
    "face_mlp": lambda s, t: FaceProjector(s.tokens, s.input_dim, _rows(t, "proj.0.weight"), s.output_dim),
    "face_plus": lambda s, t: FacePlusProjector(
        s, _rows(t, "proj.0.weight"), _rows(t, "perceiver_resampler.layers.0.1.1.weight")
    ),
}


def build_projector(spec: ProjectorSpec, tensors: Tensors) -> nn.Module:
    """Build the described projector around the given tensors (official names without `image_proj.`), without copying.

    Raises: AdapterFileError when a tensor is missing, unexpected or of another shape than described.
    """
    projector = _BUILDERS[spec.family](spec, tensors)
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise _missing(name)
        if tuple(tensors[name].shape) != shape:
            actual = tuple(tensors[name].shape)
            raise AdapterFileError(f"The projector's {name} is {actual}, expected {shape}: the file is damaged.")
    extra = sorted(tensors.keys() - expected.keys())
    if extra:
        raise AdapterFileError(f"The projector has {len(extra)} unknown tensors ({extra[0]}...): unsupported adapter.")
    # Wrapped here, because torch before 2.2 makes assigned tensors trainable.
    parameters = {name: nn.Parameter(tensors[name], requires_grad=False) for name in expected}
    projector.load_state_dict(parameters, strict=True, assign=True)
    return projector.eval()


def _rows(tensors: Tensors, name: str) -> int:
    """Return a weight's output width."""
    if name not in tensors:
        raise _missing(name)
    return tensors[name].shape[0]


def _missing(name: str) -> AdapterFileError:
    return AdapterFileError(f"The projector lacks {name}: the file is damaged; re-download it.")
