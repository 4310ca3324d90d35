"""The blocks of IdentityNet: residual, transformer and hint blocks of a ControlNet. Built by `core.identity_net`.

Parameter names are diffusers', so the published file loads as it is. Formulas: ldm `openaimodel.py` (ResBlock,
Downsample), `attention.py` (SpatialTransformer, BasicTransformerBlock, GEGLU), cldm `ControlNet` (input_hint_block).

Unlike the projectors' layers, these are torch's own, and `nn.Linear`, `nn.Conv2d`, `nn.GroupNorm` and `nn.LayerNorm`
are looked up when a block is built: a host that replaces them for the time of building (Forge's
`using_forge_operations`) gets a net that its memory manager can swap layer by layer. `device="meta"` is for torch's own
layers, which then hold no memory until the file's tensors are assigned; the host's set a device themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
META: dict[str, Any] = {"device": "meta"}


def group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Group norm in float32 whatever the net's dtype, back in x's (ldm `GroupNorm32`)."""
    return norm(x.float()).to(x.dtype)


class ResnetBlock(nn.Module):
    """Two convolutions, the timestep in between, and the input added (ldm ResBlock)."""

    def __init__(self, in_width: int, out_width: int, time_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_width, eps=1e-5, **META)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1, **META)
        self.time_emb_proj = nn.Linear(time_width, out_width, **META)
        self.norm2 = nn.GroupNorm(GROUPS, out_width, eps=1e-5, **META)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, **META)
        self.conv_shortcut = None if in_width == out_width else nn.Conv2d(in_width, out_width, 1, **META)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(b, in, h, w), (b, time) after its SiLU -> (b, out, h, w)."""
        hidden = self.conv1(F.silu(group_norm(self.norm1, x)))
        hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = self.conv2(F.silu(group_norm(self.norm2, hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, as torch computes it: its fused kernels take the softmax in float32."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False, **META)
        self.to_k = nn.Linear(context_width, width, bias=False, **META)
        self.to_v = nn.Linear(context_width, width, bias=False, **META)
        self.to_out = nn.ModuleList([nn.Linear(width, width, **META)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(b, seq, width), (b, tokens, context) -> (b, seq, width)."""
        attended = F.scaled_dot_product_attention(
            self._by_head(self.to_q(x)), self._by_head(self.to_k(context)), self._by_head(self.to_v(context))
        )
        return self.to_out[0](attended.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        return x.reshape(rows, length, self.heads, width // self.heads).transpose(1, 2)


class GatedLinear(nn.Module):
    """a * gelu(b) with [a, b] = W x (ldm GEGLU)."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, 2 * out_width, **META)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated widening by four and back. The place between is diffusers' dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width, **META))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention to itself, to the context, feed-forward; each added (ldm BasicTransformerBlock)."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, **META)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width, **META)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width, **META)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(b, seq, width), (b, tokens, context) -> (b, seq, width)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to it (ldm SpatialTransformer).

    The projections around the blocks are matrices, whatever the file stores (see `library.controlnets`).
    """

    def __init__(self, width: int, context_width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6, **META)
        self.proj_in = nn.Linear(width, width, **META)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_width, heads) for _ in range(depth)])
        self.proj_out = nn.Linear(width, width, **META)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(b, width, h, w), (b, tokens, context) -> (b, width, h, w)."""
        tokens = self.proj_in(group_norm(self.norm, x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(-1, x.shape[-2:])


class Halving(nn.Module):
    """A convolution of stride 2; an odd side becomes its half rounded up (ldm Downsample)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1, **META)

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) -> (b, width, ceil(h / 2), ceil(w / 2))."""
        return self.conv(x)


class TimeEmbedding(nn.Module):
    """W2 silu(W1 x): of the timestep, and of the vector `y` (ldm time_embed, label_emb)."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width, **META)
        self.linear_2 = nn.Linear(width, width, **META)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in) -> (b, width)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class HintEmbedding(nn.Module):
    """The hint picture brought to the latent's size and the first level's width (cldm input_hint_block)."""

    def __init__(self, channels: int, widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1, **META)
        self.blocks = nn.ModuleList()
        for width, following in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1, **META))
            self.blocks.append(nn.Conv2d(width, following, 3, stride=2, padding=1, **META))
        self.conv_out = nn.Conv2d(widths[-1], out_width, 3, padding=1, **META)

    def forward(self, hint: Tensor) -> Tensor:
        """(n, channels, 8h, 8w) -> (n, out, h, w)."""
        hidden = F.silu(self.conv_in(hint))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(hidden)


class Level(nn.Module):
    """Two residual blocks at one size, each with its transformer where the level has some, then the halving."""

    def __init__(
        self, in_width: int, out_width: int, time_width: int, context_width: int, heads: int, depth: int, *, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(width, out_width, time_width) for width in (in_width, out_width)])
        if depth:
            self.attentions = nn.ModuleList([Transformer(out_width, context_width, heads, depth) for _ in range(2)])
        if not last:
            self.downsamplers = nn.ModuleList([Halving(out_width)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """(b, in, h, w) -> what follows each residual block, and the halved one, `(b, out, ...)` each."""
        outputs: list[Tensor] = []
        attentions = cast("Sequence[nn.Module | None]", getattr(self, "attentions", (None, None)))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            x = resnet(x, time)
            if attention is not None:
                x = attention(x, context)
            outputs.append(x)
        for halving in cast("Sequence[nn.Module]", getattr(self, "downsamplers", ())):
            outputs.append(halving(outputs[-1]))
        return outputs


class Middle(nn.Module):
    """Residual block, transformer, residual block at the smallest size."""

    def __init__(self, width: int, time_width: int, context_width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(width, width, time_width) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(width, context_width, heads, depth)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """(b, width, h, w) -> (b, width, h, w)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)
