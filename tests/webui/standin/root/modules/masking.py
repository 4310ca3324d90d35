"""Mask helpers for inpainting."""

from __future__ import annotations

from PIL import Image, ImageFilter, ImageOps


def create_binary_mask(image: Image.Image, round: bool = True) -> Image.Image:  # noqa: A002 (the host's own name)
    """Grey mask from a picture; an RGBA one gives its alpha."""
    if image.mode == "RGBA" and image.getextrema()[-1] != (255, 255):
        grey = image.split()[-1].convert("L")
    else:
        grey = image.convert("L")
    return grey.point(lambda v: 255 if v > 128 else 0) if round else grey


def prepare(image: Image.Image, invert: bool, blur: int, rounded: bool) -> Image.Image:
    """The mask as the job uses it."""
    mask = create_binary_mask(image, round=rounded)
    if invert:
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else mask


def get_crop_region(mask: Image.Image, pad: int = 0) -> tuple[int, int, int, int] | None:
    """Box around the mask with padding; None when it is blank."""
    box = mask.getbbox()
    if box is None:
        return None
    x1, y1, x2, y2 = box
    return max(x1 - pad, 0), max(y1 - pad, 0), min(x2 + pad, mask.width), min(y2 + pad, mask.height)


get_crop_region_v2 = get_crop_region


def expand_crop_region(region, width: int, height: int, image_width: int, image_height: int):
    """Grow the box to the ratio of `width` to `height`, inside the picture."""
    x1, y1, x2, y2 = region
    ratio = width / height
    if (x2 - x1) / (y2 - y1) > ratio:
        y1, y2 = _grow(y1, y2, round((x2 - x1) / ratio), image_height)
    else:
        x1, x2 = _grow(x1, x2, round((y2 - y1) * ratio), image_width)
    return x1, y1, x2, y2


def _grow(a: int, b: int, wanted: int, limit: int) -> tuple[int, int]:
    missing = min(wanted, limit) - (b - a)
    a = max(0, a - missing // 2)
    b = min(limit, a + min(wanted, limit))
    return b - min(wanted, limit), b


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Masked parts filled with blurred surroundings."""
    blurred = image.filter(ImageFilter.GaussianBlur(max(4, image.width // 8)))
    return Image.composite(blurred, image, mask.convert("L"))
