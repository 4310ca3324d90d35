"""What a described model file is: the vocabulary that `library` answers in and `core` reads.

Stdlib only. `detection` fills these records from a file's header; `core.adapter` builds modules from an
`AdapterSpec` without looking at names again; `session` shows them to people.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Status = Literal["supported", "unsupported", "not_adapter", "unreadable"]
Kind = Literal[
    "base",
    "plus",
    "full_face",
    "faceid",
    "faceid_plus",
    "faceid_plus_v2",
    "faceid_portrait",
    "faceid_portrait_unnorm",
    "instantid",
]
Base = Literal["SD1", "SD2", "SDXL", "Kolors"]
EncoderName = Literal["clip_h", "clip_g", "clip_l_336", "buffalo_l", "antelopev2"]
Feature = Literal["pooled", "hidden", "face", "face_raw", "face_hidden"]
ProjectorFamily = Literal["linear", "resampler", "full_face", "face_mlp", "face_plus"]

CONTEXT_WIDTHS: dict[int, tuple[Base, ...]] = {768: ("SD1",), 1024: ("SD2",), 2048: ("SDXL", "Kolors")}
LAYER_COUNTS: dict[Base, int] = {"SD1": 16, "SD2": 16, "SDXL": 70, "Kolors": 70}
COMPANION_KINDS = ("vision_encoder", "controlnet", "lora", "face_model")


def base_title(base: str) -> str:
    """A base as people call it: everybody says SD1.5, which the field's `SD1` includes."""
    return "SD1.5" if base == "SD1" else base


class TensorInfo(NamedTuple):
    """One tensor of a file, from its header alone.

    `dtype` uses safetensors' names (F16, BF16, F32, F8_E4M3, I64, ...).
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ProjectorSpec:
    """The network that turns an encoder's features into image tokens; every number is read from shapes.

    - `linear`: Linear `input_dim -> tokens * output_dim`, LayerNorm
    - `resampler`: Perceiver on `(n, seq, input_dim)` with `tokens` learned queries
    - `full_face`: MLP on every hidden token, `tokens` (257) in and out
    - `face_mlp`: MLP `512 -> tokens * output_dim`, LayerNorm
    - `face_plus`: `face_mlp` whose tokens query a Perceiver over CLIP's hidden states (`hidden_dim` wide)

    `dim`, `heads` and `depth` describe the Perceiver, a head is always 64 wide; in an MLP `dim` is its inner width.
    What a family has not is 0.
    """

    family: ProjectorFamily
    tokens: int
    input_dim: int
    output_dim: int
    hidden_dim: int = 0
    dim: int = 0
    heads: int = 0
    depth: int = 0


@dataclass(frozen=True)
class AdapterSpec:
    """A supported adapter file, described far enough to build it.

    `tensors` maps official flat names (`image_proj.proj.weight`, `ip_adapter.1.to_k_ip.weight`,
    `ip_adapter.0.to_q_lora.down.weight`) to the names in the file; nested files are flattened with dots.
    `layers` maps a cross-attention's key id (1, 3, ... as in diffusers' `attn_processors` order) to its width.
    `encoders` are the published encoders' names; a narrow test net keeps the name of the kind it stands for.
    `image_size` is the side in pixels that the vision encoder is fed, 0 without a vision encoder.
    """

    kind: Kind
    variant: str
    base: Base
    tokens: int
    encoders: tuple[EncoderName, ...]
    feature: Feature
    context_dim: int
    layers: dict[int, int]
    projector: ProjectorSpec
    image_size: int = 224
    lora_rank: int = 0
    decided_by: str = ""
    tensors: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class VisionEncoderSpec:
    """A CLIP vision tower, sized from its tensors. `layout` is how its keys are written.

    `projected_dim` is 0 when the file has no projection; `image_size` follows from the position count and the patch
    size. `prefix` is what precedes `vision_model.` or `visual.` in the file's names; `encoders.layouts` maps the rest.
    """

    name: str
    layout: Literal["transformers", "open_clip"]
    hidden_dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch: int
    positions: int
    projected_dim: int
    activation: Literal["gelu", "quick_gelu"]
    prefix: str = ""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square the tower was trained on: sqrt(positions - 1) * patch."""
        return round((self.positions - 1) ** 0.5) * self.patch


@dataclass(frozen=True)
class ControlNetSpec:
    """A ControlNet, sized from its tensors: the encoder half of a UNet, and one convolution per residual.

    `channels` and `depths` hold the width and the number of transformer blocks per attention for each level, from the
    latent's own size down; a level has two residual blocks and, but for the last, a halving. `mid_depth` is the middle
    block's. `y_dim` is 0 where the net takes no vector beside the prompt. `hint_widths` are those of the convolutions
    that bring the hint picture (`hint_channels` deep) to the latent's size.

    `heads` per level is the published convention, because no shape tells it: 8 heads where the context is 768 wide,
    heads of 64 elsewhere. A ControlNet is a copy of a UNet, so `core.identity_fit` puts the loaded UNet's there.

    `tensors` maps diffusers' names (`down_blocks.0.resnets.0.norm1.weight`) to the names in the file; `layout` is how
    those are written.
    """

    layout: Literal["diffusers", "ldm"]
    context_dim: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    heads: tuple[int, ...]
    y_dim: int = 0
    in_channels: int = 4
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    tensors: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def residuals(self) -> tuple[int, ...]:
        """Widths of the residuals that go down the skip connections, in the order in which the UNet makes those."""
        widths = [self.channels[0]]
        for level, width in enumerate(self.channels):
            widths += [width] * (2 if level == len(self.channels) - 1 else 3)
        return tuple(widths)


@dataclass(frozen=True)
class FileReport:
    """What one file is, in one sentence and in fields. The command line prints these.

    `adapter` is set when `status` is supported; `vision_encoder` when `kind` is "vision_encoder"; `controlnet` when
    `kind` is "controlnet" and IdentityNet's code can run it.
    """

    path: str
    status: Status
    kind: str = ""
    variant: str = ""
    base: str = ""
    tokens: int = 0
    encoder: tuple[str, ...] = ()
    decided_by: str = ""
    message: str = ""
    adapter: AdapterSpec | None = field(default=None, repr=False)
    vision_encoder: VisionEncoderSpec | None = field(default=None, repr=False)
    controlnet: ControlNetSpec | None = field(default=None, repr=False)
