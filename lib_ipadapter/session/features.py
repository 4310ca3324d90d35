"""References to encoder features: one encoder on the device at a time, results kept by content.

`session.prepare` opens one `EncoderPool` for a job and closes it before the first UNet step.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..core.embeds import Features
from ..encoders.clip_vision import VisionEncoder, Want, load_vision_encoder, pixel_tensor
from ..encoders.squares import Framing, to_squares
from ..hosts.base import Host
from ..library.errors import NotANumberError
from ..library.spec import VisionEncoderSpec
from ..units.images import open_picture
from .cache import ResultCache
from .pools import ReleasedPool


class EncoderFile(NamedTuple):
    """A vision encoder on disk; `fingerprint` changes when its bytes do."""

    name: str
    path: Path
    spec: VisionEncoderSpec
    fingerprint: str


@dataclass(frozen=True)
class Reference:
    """One reference picture's file bytes and their digest (`sha256:...`)."""

    name: str
    digest: str
    data: bytes = field(repr=False)

    def picture(self) -> Image.Image:
        """The upright RGB picture. Raises BadImageError."""
        return open_picture(self.data, self.name)


class View(NamedTuple):
    """How an adapter looks at a picture: which feature, at which side in pixels, framed how."""

    feature: str
    side: int
    framing: Framing

    @property
    def want(self) -> Want:
        return "pooled" if self.feature == "pooled" else "hidden"


class EncoderPool(ReleasedPool):
    """Encodes pictures with whatever encoder each unit needs, holding one encoder at a time.

    `encoded` counts the squares that really went through an encoder.
    """

    def __init__(self, host: Host, cache: ResultCache) -> None:
        self._host = host
        self._cache = cache
        self._loaded: tuple[str, VisionEncoder] | None = None
        self.device = host.device()
        self.dtype = host.dtype()
        self.encoded = 0

    def release(self) -> None:
        """Drop the encoder and give the device's memory back."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()
            self._host.release()

    def reference(self, encoder: EncoderFile, view: View, reference: Reference) -> Tensor:
        """Features of one picture's squares: pooled `(squares, P)` or hidden `(squares, L, H)`, float32 on the CPU."""
        key = ("features", reference.digest, encoder.fingerprint, view)

        def encode() -> Tensor:
            return self._run(encoder, view, pixel_tensor(to_squares(reference.picture(), view.side, view.framing)))

        return self._kept(key, encode)

    def square(self, encoder: EncoderFile, view: View, content: Hashable, square: Image.Image) -> Tensor:
        """Features of a square that was made elsewhere, as `reference` gives them; `content` stands for its pixels."""

        def encode() -> Tensor:
            return self._run(encoder, view, pixel_tensor(to_squares(square, view.side, view.framing)))

        return self._kept(("square", content, encoder.fingerprint, view), encode)

    def negative(
        self, encoder: EncoderFile, view: View, uncond: str, references: Sequence[Reference], amount: float = 1.0
    ) -> Tensor:
        """Features `(1, ...)` that stand for "no picture": `official` zero pixels, a `black` picture, or `noise`.

        Official: the zero **pixel tensor**, after normalisation (tencent-ailab/IP-Adapter, IPAdapterPlus.
        get_image_embeds). Black: a black picture through the same preprocessing (ComfyUI_IPAdapter_plus, Forge). Noise:
        uniform random pixels from a generator seeded by the references, so that a job can be repeated. `amount` of the
        noise: the pixel tensor times it where the encoder's hidden states are taken, whose official negative is zero
        pixels, and the features times it where the pooled ones are, whose official negative is zero features.
        """
        scaled = amount if uncond == "noise" and view.want == "hidden" else 1.0
        seed = hashlib.sha256("".join(reference.digest for reference in references).encode()).hexdigest()[:15]
        key = ("negative", uncond, encoder.fingerprint, view.want, view.side, seed if uncond == "noise" else "", scaled)

        def encode() -> Tensor:
            return self._run(encoder, view, scaled * negative_pixels(uncond, view.side, int(seed, 16)))

        found = self._kept(key, encode)
        return amount * found if uncond == "noise" and view.want == "pooled" else found

    def _kept(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        def measured() -> tuple[Tensor, int]:
            features = make()
            return features, features.nbytes

        return self._cache.get_or_make(key, Tensor, measured)

    def _run(self, encoder: EncoderFile, view: View, pixels: Tensor) -> Tensor:
        features = self._load(encoder)(pixels, want=view.want)
        chosen = features.pooled if view.want == "pooled" else features.hidden
        assert chosen is not None
        result = chosen.float().cpu()
        require_finite(f"The encoder {encoder.name}", self.dtype, result)
        self.encoded += pixels.shape[0]
        return result

    def _load(self, encoder: EncoderFile) -> VisionEncoder:
        if self._loaded is not None and self._loaded[0] == encoder.fingerprint:
            return self._loaded[1]
        self.release()
        # An earlier job that failed may be held by the traceback of its error, and its encoder with it.
        gc.collect()
        self._host.make_room(encoder_bytes(encoder.spec, self.dtype))
        loaded = load_vision_encoder(encoder.spec, encoder.path, device=self.device, dtype=self.dtype)
        self._loaded = (encoder.fingerprint, loaded)
        return loaded


def require_finite(what: str, dtype: torch.dtype, *tensors: Tensor) -> None:
    """Refuse values that would make the picture black. Raises: NotANumberError."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NotANumberError(
            f"{what} gave values that are not numbers in {dtype}. The file may be damaged; if it is not, this device "
            "needs full precision: start the WebUI with --no-half (A1111) or --all-in-fp32 (Forge)."
        )


def negative_pixels(uncond: str, side: int, seed: int) -> Tensor:
    """The pixel tensor `(1, 3, side, side)` of an uncond choice: zero pixels, a black picture or uniform noise."""
    if uncond == "black":
        return pixel_tensor([Image.new("RGB", (side, side))])
    if uncond == "noise":
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        return pixel_tensor([Image.fromarray(values.numpy())])
    return torch.zeros(1, 3, side, side)


def encoder_bytes(spec: VisionEncoderSpec, dtype: torch.dtype) -> int:
    """About how many bytes a tower takes: its layers' matrices, positions and projection."""
    layer = 4 * spec.hidden_dim**2 + 2 * spec.hidden_dim * spec.mlp_dim
    rest = spec.hidden_dim * (spec.positions + spec.projected_dim + 3 * spec.patch**2)
    return (layer * spec.depth + rest) * dtype.itemsize


def as_features(view: View, tensor: Tensor) -> Features:
    """Name a feature tensor for the projector."""
    return Features(pooled=tensor) if view.want == "pooled" else Features(hidden=tensor)
