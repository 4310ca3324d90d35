"""A unit's region, read before sampling and drawn for the canvas of each pass. Used by `session.prepare` and `people`.

A region's edge is the region blurred by a box as wide as the feather, with what touches the picture's border going on
beyond it. So a rectangle's edge is a straight ramp, half inside and half outside, neighbouring regions add up to one,
and nothing fades at the border.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..core.masks import PIXELS_PER_LATENT
from ..hosts.crops import Crop
from ..library.errors import BadImageError, UnsupportedHostStateError
from ..units.images import OPAQUE_BLACK, ImageStore, decode_reference, digest, open_picture
from ..units.regions import Region, parse_region
from ..units.unit import Unit

LONGEST_SIDE = 2048
"""At which a drawn region is kept and feathered; a level of the UNet is 8 to 64 times coarser than its canvas."""

_DARKEST = 8
"""Of 255: what a drawing has at least where it is drawn; JPEG leaves a little in black."""

Canvas = tuple[int, int]


@dataclass(frozen=True)
class ReadyRegion:
    """A region ready to be drawn: its feather, and the drawing where it is no box. `text` is fit for an infotext."""

    region: Region
    feather: float
    text: str
    drawing: Image.Image | None = field(default=None, repr=False)


def read_region(unit: Unit, store: ImageStore) -> ReadyRegion | None:
    """What the unit's fields say; None for everywhere, and where faces say it (`session.people`).

    Raises: BadImageError for a drawing that cannot be used.
    """
    region = parse_region(unit.region)
    if region.is_everywhere or (region.box is None and not region.is_picture):
        return None
    if region.box is not None:
        return ReadyRegion(region, unit.feather, region.text)
    name = "the region's picture"
    try:
        data = decode_reference(unit.region, store)
    except BadImageError as error:
        raise BadImageError(f"{name}: {error}") from error
    drawing = open_picture(data, name, OPAQUE_BLACK).convert("L")
    lightest = drawing.getextrema()[1]
    if lightest < _DARKEST:
        raise BadImageError(
            f"{name} is black everywhere (its lightest value is {lightest} of 255), so the unit would act nowhere: "
            "draw white where it should act, or switch the unit off."
        )
    drawing.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    return ReadyRegion(region, unit.feather, digest(data), drawing)


def canvas_of(latent: Any) -> Canvas | None:
    """(height, width) in pixels of the picture whose latents these are; None where they are no latents."""
    if not isinstance(latent, Tensor) or latent.ndim != 4:
        return None
    return int(latent.shape[2]) * PIXELS_PER_LATENT, int(latent.shape[3]) * PIXELS_PER_LATENT


def known(canvas: Canvas | None) -> Canvas:
    """The canvas itself. Raises: UnsupportedHostStateError where it is not known."""
    if canvas is None:
        raise UnsupportedHostStateError(
            "A pass began and the host did not say how large it samples, so a unit's region cannot be placed: let the "
            "unit act everywhere, or run the job without the script that samples in its own way."
        )
    return canvas


def draw_region(region: ReadyRegion, canvas: Canvas | None, crop: Crop | None) -> Tensor:
    """The region as a mask `(height, width)` in 0..1 of a pass's canvas, which shows the whole picture or `crop` of it.

    Raises: UnsupportedHostStateError where the canvas is not known.
    """
    canvas = known(canvas)
    shown = crop or _whole(canvas)
    if region.region.box is None:
        return _draw_picture(region, canvas, shown)
    box, shorter = region.region.box, min(shown.picture)
    across, down = (_Axis(shown, canvas, axis) for axis in (0, 1))
    rows = down.ramp(box.y, box.height, region.feather * shorter / shown.picture[1])
    columns = across.ramp(box.x, box.width, region.feather * shorter / shown.picture[0])
    return rows[:, None] * columns[None, :]


def draw_box(box: tuple[float, float, float, float], canvas: Canvas, feather: float) -> Tensor:
    """The mask `(height, width)` of a box (left, top, right, bottom), it and its `feather` in pixels of the canvas."""
    height, width = canvas
    left, top, right, bottom = box
    across, down = (_Axis(_whole(canvas), canvas, axis) for axis in (0, 1))
    rows = down.ramp(top / height, (bottom - top) / height, feather / height)
    columns = across.ramp(left / width, (right - left) / width, feather / width)
    return rows[:, None] * columns[None, :]


def _whole(canvas: Canvas) -> Crop:
    height, width = canvas
    return Crop((width, height), (0, 0, width, height))


class _Axis:
    """One side of a canvas: where each of its pixels lies in the whole picture, as a fraction of the picture's side."""

    def __init__(self, shown: Crop, canvas: Canvas, axis: int) -> None:
        start, length = shown.box[axis], shown.box[2 + axis]
        offset, filled = shown.fitted((canvas[1], canvas[0]))[axis]
        # Beyond the crop the hosts repeat its edge.
        pixels = (torch.arange(canvas[1 - axis], dtype=torch.float64) - offset).clamp(0, filled - 1)
        self.positions = (start + length * (pixels + 0.5) / filled) / shown.picture[axis]
        self.pixel = length / filled / shown.picture[axis]

    def ramp(self, start: float, length: float, feather: float) -> Tensor:
        """1 inside of the interval, 0 outside; the edges as wide as `feather`, but a pixel, so that each is counted."""
        wide = max(feather, self.pixel)

        def above(edge: float) -> Tensor:
            return ((self.positions - edge) / wide + 0.5).clamp(0.0, 1.0)

        end = start + length
        rise = torch.ones_like(self.positions) if start <= 0.0 else above(start)
        fall = torch.zeros_like(self.positions) if end >= 1.0 - 1e-9 else above(end)
        return torch.round(rise - fall, decimals=6).float()


def _draw_picture(region: ReadyRegion, canvas: Canvas, shown: Crop) -> Tensor:
    """A drawing, stretched over the whole picture, feathered there, and cut as the picture is."""
    assert region.drawing is not None
    height, width = canvas
    scale = min(1.0, LONGEST_SIDE / max(shown.picture))
    size = tuple(max(1, round(side * scale)) for side in shown.picture)
    whole = region.drawing.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    radius = (region.feather * min(size) - 1) / 2  # Pillow's box is 2 radius + 1 wide
    if radius > 0:
        whole = whole.filter(ImageFilter.BoxBlur(radius))
    x, y, box_width, box_height = shown.box
    across, down = size[0] / shown.picture[0], size[1] / shown.picture[1]
    box = (x * across, y * down, (x + box_width) * across, (y + box_height) * down)
    (left, filled), (top, tall) = shown.fitted((width, height))
    part = whole.resize((filled, tall), Image.Resampling.BILINEAR, box=box)
    mask = torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8).reshape(tall, filled).float() / 255
    columns = (torch.arange(width) - left).clamp(0, filled - 1)
    rows = (torch.arange(height) - top).clamp(0, tall - 1)
    return mask[rows][:, columns]
