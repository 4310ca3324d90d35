"""The CLIP vision tower in plain torch: squares in, pooled and hidden features out.

`session` loads one for a job's references, keeps what it returns and drops it before the first UNet step; nothing is
held here. The network and its parameter names are those of transformers' `modeling_clip.CLIPVisionModelWithProjection`
(`vision_model.pre_layrnorm` is spelt so in every published file). `torch.nn` is looked up when a tower is built, so a
host that replaces its layers gets its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core.autocast import without_autocast
from ..core.checkpoint import read_tensors
from ..core.embeds import Features
from ..library.errors import AdapterFileError
from ..library.spec import VisionEncoderSpec
from .layouts import converted, names_to_read
from .squares import IMAGE_MEAN, IMAGE_STD

Want = Literal["pooled", "hidden", "both"]

_HALVES = (torch.float16, torch.bfloat16)


def pixel_tensor(squares: Sequence[Image.Image]) -> Tensor:
    """Normalise RGB squares of one size into float32 `(n, 3, side, side)`, as transformers' `CLIPImageProcessor`.

    `(value / 255 - mean) / std` per channel.
    """
    values = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
    values = (values / 255 - np.asarray(IMAGE_MEAN, np.float32)) / np.asarray(IMAGE_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def load_vision_encoder(
    spec: VisionEncoderSpec, path: Path, *, device: torch.device | str, dtype: torch.dtype
) -> VisionEncoder:
    """Build the tower that `spec` describes and fill it from `path`, converted to `dtype` on `device`.

    Only the vision part of the file is read. On the CPU half precision becomes float32: it is slow or missing there.
    Tensors are moved one by one into a tower that has none of its own, so the tower is never held twice.

    Raises: AdapterFileError when the file lacks a tensor or one has another shape than `spec` says.
    """
    target = torch.device(device)
    if target.type == "cpu" and dtype in _HALVES:
        dtype = torch.float32
    encoder = VisionEncoder(spec)
    state: dict[str, Tensor] = {}
    for name, tensor in converted(spec, read_tensors(path, names_to_read(spec))):
        # a Parameter already: older torch would wrap plain tensors as trainable ones
        state[name] = torch.nn.Parameter(tensor.to(device=target, dtype=dtype), requires_grad=False)
    for name, parameter in encoder.named_parameters():
        found, expected = tuple(state[name].shape), tuple(parameter.shape)
        if found != expected:
            raise AdapterFileError(
                f"{path.name}: {name} is {found} where the rest of the tower needs {expected}; "
                "download this vision encoder again."
            )
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


class VisionEncoder(torch.nn.Module):
    """A CLIP vision tower; built without weights (meta device), `load_vision_encoder` assigns them."""

    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_model = _VisionModel(spec)
        if spec.projected_dim:
            self.visual_projection = torch.nn.Linear(spec.hidden_dim, spec.projected_dim, bias=False, device="meta")
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, want: Want = "both") -> Features:
        """Encode normalised squares `(n, 3, side, side)`.

        Returns `pooled` `(n, projected_dim)`, the projected class token, and `hidden` `(n, positions, hidden_dim)`,
        transformers' `hidden_states[-2]`; what is not wanted is None and not computed (the last layer is only needed
        for `pooled`). A side other than `spec.image_size` gets interpolated positions.

        An autocast the host has switched on for its UNet is off in here: the weights' dtype is the one asked for.

        Raises: AdapterFileError when `pooled` is wanted of a file without a projection.
        """
        if want != "hidden" and not self.spec.projected_dim:
            raise AdapterFileError(
                f"The vision encoder {self.spec.name} has no projection (visual_projection.weight), which this "
                "adapter needs; use a file that has one, such as the CLIP-ViT files published with IP-Adapter."
            )
        model = self.vision_model
        weight = model.embeddings.class_embedding
        with without_autocast(weight.device):
            x = model.pre_layrnorm(model.embeddings(pixels.to(device=weight.device, dtype=weight.dtype)))
            *layers, last = model.encoder.layers
            for layer in layers:
                x = layer(x)
            hidden = x if want != "pooled" else None
            if want == "hidden":
                return Features(pooled=None, hidden=hidden)
            pooled = self.visual_projection(model.post_layernorm(last(x)[:, 0]))
            return Features(pooled=pooled, hidden=hidden)


class _VisionModel(torch.nn.Module):
    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.embeddings = _Embeddings(spec)
        self.pre_layrnorm = torch.nn.LayerNorm(spec.hidden_dim, device="meta")
        self.encoder = _Layers(spec)
        self.post_layernorm = torch.nn.LayerNorm(spec.hidden_dim, device="meta")


class _Layers(torch.nn.Module):
    """Holds the layers under the name that the files give them; the tower runs them itself."""

    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(_Layer(spec) for _ in range(spec.depth))


class _Embeddings(torch.nn.Module):
    """Patches and the class token with their positions: `(n, 3, side, side)` -> `(n, positions, hidden_dim)`."""

    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        width, patch = spec.hidden_dim, spec.patch
        self.class_embedding = torch.nn.Parameter(torch.empty(width, device="meta"))
        self.patch_embedding = torch.nn.Conv2d(3, width, patch, stride=patch, bias=False, device="meta")
        self.position_embedding = torch.nn.Embedding(spec.positions, width, device="meta")

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels)
        n, _, rows, columns = patches.shape
        tokens = torch.cat([self.class_embedding.expand(n, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + _positions(self.position_embedding.weight, rows, columns)


def _positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Positions `(1 + rows * columns, hidden_dim)` for a patch grid, the class token's first.

    A grid other than the trained one is interpolated bicubically, as transformers' `CLIPVisionEmbeddings.
    interpolate_pos_encoding`; in float32 on the CPU, where every backend's users have it.
    """
    trained = round((table.shape[0] - 1) ** 0.5)
    if (rows, columns) == (trained, trained):
        return table
    grid = table[1:].float().cpu().reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).t().to(table)])


class _Layer(torch.nn.Module):
    """One pre-norm transformer layer, `(n, positions, hidden_dim)` in and out."""

    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.layer_norm1 = torch.nn.LayerNorm(spec.hidden_dim, device="meta")
        self.self_attn = _SelfAttention(spec)
        self.layer_norm2 = torch.nn.LayerNorm(spec.hidden_dim, device="meta")
        self.mlp = _MLP(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _SelfAttention(torch.nn.Module):
    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        width = spec.hidden_dim
        self.q_proj = torch.nn.Linear(width, width, device="meta")
        self.k_proj = torch.nn.Linear(width, width, device="meta")
        self.v_proj = torch.nn.Linear(width, width, device="meta")
        self.out_proj = torch.nn.Linear(width, width, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(torch.nn.Module):
    def __init__(self, spec: VisionEncoderSpec) -> None:
        super().__init__()
        self.quick = spec.activation == "quick_gelu"
        self.fc1 = torch.nn.Linear(spec.hidden_dim, spec.mlp_dim, device="meta")
        self.fc2 = torch.nn.Linear(spec.mlp_dim, spec.hidden_dim, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # quick_gelu is OpenAI's own approximation (CLIP/clip/model.py, QuickGELU); their weights were trained with it
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))
