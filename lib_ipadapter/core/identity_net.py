"""IdentityNet: the ControlNet that sees a face's tokens and its keypoints, in plain torch. Loaded by `session`.

A ControlNet is the encoder half of a UNet with one more convolution per skip connection; what those give is added to
the UNet's own skip connections by `core.residuals`. InstantID's differs from others only in what it is fed: its context
is the face tokens alone (InstantID, Wang et al. 2024; official `pipeline_stable_diffusion_xl_instantid.py`).

Build it inside the host's own context where the host is to swap it (`core.identity_blocks` says how):

    with using_forge_operations(device=cpu, dtype=dtype, manual_cast_enabled=True):
        net = load_identity_net(spec, path, dtype=dtype)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..library.errors import AdapterFileError, WrongBaseError
from ..library.spec import ControlNetSpec
from .autocast import without_autocast
from .checkpoint import read_tensors
from .identity_blocks import META, HintEmbedding, Level, Middle, TimeEmbedding


class Residuals(NamedTuple):
    """What a ControlNet adds: to each skip connection in the order in which the UNet makes them, and to the middle."""

    down: list[Tensor]
    mid: Tensor


class IdentityNet(nn.Module):
    """A ControlNet of the described sizes, without memory until `build_identity_net` assigns the tensors.

    `dtype` is what it computes in, `float32` inside its group norms and for the timestep.
    """

    def __init__(self, spec: ControlNetSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = dtype
        first, last = spec.channels[0], spec.channels[-1]
        time, context = 4 * first, spec.context_dim
        self.conv_in = nn.Conv2d(spec.in_channels, first, 3, padding=1, **META)
        self.time_embedding = TimeEmbedding(first, time)
        if spec.y_dim:
            self.add_embedding = TimeEmbedding(spec.y_dim, time)
        self.controlnet_cond_embedding = HintEmbedding(spec.hint_channels, spec.hint_widths, first)
        self.down_blocks = nn.ModuleList()
        inward = (first, *spec.channels)
        for level, (width, depth, heads) in enumerate(zip(spec.channels, spec.depths, spec.heads, strict=True)):
            is_last = level == len(spec.channels) - 1
            self.down_blocks.append(Level(inward[level], width, time, context, heads, depth, last=is_last))
        self.mid_block = Middle(last, time, context, spec.heads[-1], spec.mid_depth)
        self.controlnet_down_blocks = nn.ModuleList([nn.Conv2d(width, width, 1, **META) for width in spec.residuals])
        self.controlnet_mid_block = nn.Conv2d(last, last, 1, **META)

    @torch.no_grad()
    def embed_hint(self, hint: Tensor) -> Tensor:
        """Bring hint pictures (n, 3, 8h, 8w) in 0..1 to (n, C, h, w): the same for every step, so made once a pass."""
        with without_autocast(hint.device):
            return self.controlnet_cond_embedding(hint.to(self.dtype))

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        hint: Tensor,
        y: Tensor | None = None,
        *,
        strength: float = 1.0,
    ) -> Residuals:
        """Residuals for the rows of one UNet call, each times `strength`, in the net's dtype.

        `x` (b, 4 or more, h, w): the UNet's latents, of which the first four channels count (an inpainting UNet has
        nine). `timesteps` (b,), `context` (b, T, D), `y` (b, Y) where the net has a `y_dim`. `hint` (1 or b, C, h, w)
        comes from `embed_hint`.

        Raises: WrongBaseError when the net has a `y_dim` and there is no `y`.
        """
        with without_autocast(x.device):
            time = self._embed_time(timesteps, y)
            context = context.to(self.dtype)
            hidden = self.conv_in(x[:, : self.spec.in_channels].to(self.dtype)) + hint.to(self.dtype)
            skips = [hidden]
            for level in self.down_blocks:
                skips += level(skips[-1], time, context)
            mid = self.mid_block(skips[-1], time, context)
            down = [
                convolution(skip).mul_(strength)
                for convolution, skip in zip(self.controlnet_down_blocks, skips, strict=True)
            ]
            return Residuals(down, self.controlnet_mid_block(mid).mul_(strength))

    def _embed_time(self, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """(b,), (b, Y) -> (b, 4C), through the SiLU that every residual block begins with."""
        time = self.time_embedding(timestep_embedding(timesteps, self.spec.channels[0]).to(self.dtype))
        if self.spec.y_dim:
            if y is None:
                raise WrongBaseError(
                    f"IdentityNet takes a vector of {self.spec.y_dim} numbers beside the prompt and the UNet was "
                    "called without one: choose an SDXL checkpoint."
                )
            time = time + self.add_embedding(y.to(self.dtype))
        return F.silu(time)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """[cos(t f), sin(t f)] with f = 10000^(-i / (width / 2)): (b,) -> (b, width) in float32 (ldm util.py)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def load_identity_net(spec: ControlNetSpec, path: Path, *, dtype: torch.dtype = torch.float32) -> IdentityNet:
    """Read a described ControlNet, on the CPU in `dtype` (its group norms in float32); the caller places it.

    Raises: AdapterFileError when a tensor is missing or of another shape than described.
    """
    return build_identity_net(spec, read_tensors(path, spec.tensors), dtype=dtype)


def build_identity_net(
    spec: ControlNetSpec, tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
) -> IdentityNet:
    """Build the net around the given tensors, by diffusers' names; those already in `dtype` are not copied.

    A plain dictionary is emptied on the way, so that no tensor is held in two precisions.

    Raises: AdapterFileError when a tensor is missing, unexpected or of another shape than described.
    """
    net = IdentityNet(spec, dtype)
    given = tensors if isinstance(tensors, dict) else dict(tensors)
    modules = cast("Iterator[tuple[str, nn.Module]]", net.named_modules())
    group_norms = {name for name, module in modules if hasattr(module, "num_groups")}
    parameters: dict[str, nn.Parameter] = {}
    for name in list(given):
        tensor = given.pop(name)
        tensor = tensor.to(torch.float32 if name.rpartition(".")[0] in group_norms else dtype)
        if name.endswith((".proj_in.weight", ".proj_out.weight")):
            tensor = tensor.flatten(1)  # SD1.5 files store these matrices as 1x1 convolutions.
        # Wrapped here, because torch before 2.2 makes assigned tensors trainable.
        parameters[name] = nn.Parameter(tensor, requires_grad=False)
    try:
        net.load_state_dict(parameters, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterFileError(f"The ControlNet's tensors are not as described ({reason}): re-download it.") from error
    return net.requires_grad_(False).eval()
