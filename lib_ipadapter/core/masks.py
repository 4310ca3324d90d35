"""Where a unit acts: a mask of the canvas, at the size of every level of a UNet.

`core.attach` multiplies a unit's image attention with it, `core.residuals` what IdentityNet adds; `session` draws it.

A UNet halves its latent from level to level with strided convolutions that round up (ldm `Downsample`: kernel 3, stride
2, padding 1), so a level's height and width follow from the latent's alone. A layer's sequence is looked up among them:
no square root, whose rounding is what breaks on sizes that are no multiple of 64.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..library.errors import UnsupportedHostStateError

PIXELS_PER_LATENT = 8

Size = tuple[int, int]


@lru_cache(maxsize=16)
def level_sizes(height: int, width: int) -> tuple[Size, ...]:
    """(height, width) of every level below a latent of this size, the latent's own first, down to 1 x 1."""
    sizes = [(height, width)]
    while sizes[-1] != (1, 1):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return tuple(sizes)


def averaged(mask: Tensor, size: Size) -> Tensor:
    """A mask `(H, W)`, on the CPU, at a level's size `(h, w)`: the mean over what each place covers, in float32.

    Summed in double: a level's place covers thousands of pixels, whose float32 sum is off by 1e-5.
    """
    return F.interpolate(mask[None, None].double(), size, mode="area")[0, 0].float()


def is_everywhere(mask: Tensor | None) -> bool:
    """Whether a mask changes nothing; reads its values, so ask on the CPU and not while sampling."""
    return mask is None or bool((mask == 1.0).all())


def is_nowhere(mask: Tensor | None) -> bool:
    """Whether a mask leaves nothing; reads its values, as `is_everywhere`."""
    return mask is not None and not bool(mask.any())


class CanvasMask:
    """One unit's mask `(H, W)` in 0..1, float, of a pass's canvas in pixels, and what the layers need of it.

    The weights of a level are made when its first layer runs, and kept: one small tensor for each level.
    """

    def __init__(self, unit: str, mask: Tensor) -> None:
        self._unit = unit
        self._mask = mask
        self._weights: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def check(self, latent: Size) -> None:
        """See that a UNet call is of the mask's canvas; `latent` is the call's (height, width).

        Raises: UnsupportedHostStateError for a tile, or a picture of another size.
        """
        height, width = self._mask.shape
        called = (latent[0] * PIXELS_PER_LATENT, latent[1] * PIXELS_PER_LATENT)
        if called != (height, width):
            raise UnsupportedHostStateError(
                f"{self._unit}: its region is drawn for a picture of {width}x{height} and the UNet was called for "
                f"{called[1]}x{called[0]}; another extension samples in tiles or at other sizes (Tiled Diffusion, "
                "MultiDiffusion?): turn it off, or let the unit act everywhere."
            )

    def weights(self, image: Tensor) -> Tensor:
        """The mask for a layer's image attention `(rows, seq, width)`, as `(seq, 1)` in its dtype on its device.

        Raises: UnsupportedHostStateError where no level of this canvas has such a sequence.
        """
        length = image.shape[1]
        key = (length, image.dtype, image.device)
        weights = self._weights.get(key)
        if weights is None:
            weights = averaged(self._mask, self._level(length)).reshape(length, 1)
            weights = self._weights[key] = weights.to(device=image.device, dtype=image.dtype)
        return weights

    def _level(self, length: int) -> Size:
        height, width = self._mask.shape
        sizes = level_sizes(height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        for size in sizes:
            if size[0] * size[1] == length:
                return size
        shown = ", ".join(f"{w}x{h}" for h, w in sizes[:4])
        raise UnsupportedHostStateError(
            f"{self._unit}: a layer of the UNet works on {length} places, and the levels of a picture of "
            f"{width}x{height} have {shown}; another extension reshapes the UNet (Kohya HRFix, token merging?): turn "
            "it off, or let the unit act everywhere."
        )


def add_weighted(hidden: Tensor, image: Tensor, weight: float, mask: CanvasMask | None, *, in_place: bool) -> Tensor:
    """`hidden + weight · mask · image`, all `(rows, seq, width)`, in one pass over them; no mask is a mask of ones."""
    if mask is None:
        return hidden.add_(image, alpha=weight) if in_place else hidden.add(image, alpha=weight)
    places = mask.weights(image)
    if in_place:
        return hidden.addcmul_(image, places, value=weight)
    return torch.addcmul(hidden, image, places, value=weight)
