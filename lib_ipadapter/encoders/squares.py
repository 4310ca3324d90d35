"""What a vision encoder sees of a picture: one or several squares cut, padded or stretched from it.

PIL only. `session` calls `to_squares` before it encodes, the page shows what it returns for the same arguments: the
preview cannot differ from what is encoded.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

Framing = Literal["centre", "pad", "stretch", "tiles"]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

PAD_COLOUR = (123, 117, 104)
"""CLIP's mean colour in 8 bits: after normalisation it is zero to within 0.007, the encoder's idea of no content."""

MAX_TILES = 4
NEARLY_SQUARE = 1.2
"""Up to this ratio of sides the centre square shows at least five sixths of the picture; tiles would repeat it."""

MAX_EXACT_RATIO = 64
"""Beyond this ratio of sides the whole resized strip is not built, only its centre (see `_centre`)."""


def to_squares(image: Image.Image, side: int, how: Framing) -> list[Image.Image]:
    """Cut a picture into the squares that are encoded, each `side` x `side` pixels, RGB.

    - `centre`: the shortest edge resized to `side`, the centre cut out; the pixels of transformers'
      `CLIPImageProcessor` (`image_transforms.get_resize_output_image_size`, `resize`, `center_crop`)
    - `pad`: the whole picture, letterboxed in CLIP's mean colour
    - `stretch`: the whole picture, its ratio given up
    - `tiles`: squares as wide as the short edge, evenly along the long one, the first and the last flush with the
      ends. Their number is the ratio of the sides rounded up, at most four; so they overlap up to a ratio of 4 and
      beyond it leave gaps. A nearly square picture gives the centre square alone.

    Every resize is PIL's bicubic, which averages over the covered source pixels when it shrinks (antialias).
    `image` is RGB already: how transparency or grey becomes RGB is the caller's choice.

    Raises: ValueError when `image` is not RGB, `side` is not positive or `how` is unknown.
    """
    if image.mode != "RGB":
        raise ValueError(f"The picture is in mode {image.mode}; convert it to RGB first.")
    if side < 1:
        raise ValueError(f"A square of {side} pixels cannot be encoded.")
    if how == "centre":
        return [_centre(image, side)]
    if how == "pad":
        return [_padded(image, side)]
    if how == "stretch":
        return [image.resize((side, side), Image.Resampling.BICUBIC)]
    if how == "tiles":
        return _tiles(image, side)
    raise ValueError(f"Unknown framing {how!r}; choose centre, pad, stretch or tiles.")


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Resize the shortest edge to `side` and cut the centre square.

    Resizing a 10000 x 3 picture whole would fill hundreds of megabytes of which one square is kept. Beyond
    `MAX_EXACT_RATIO` only the source region behind that square is resized; PIL places such a region in single
    precision, so there, and only there, a channel may differ from the whole resize by a level or two.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(side * long / short)  # transformers truncates the long edge; rounding would shift the pixels
    start = (new_long - side) // 2
    wide = width > height
    if long <= MAX_EXACT_RATIO * short:
        size = (new_long, side) if wide else (side, new_long)
        left, top = (start, 0) if wide else (0, start)
        return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    scale = long / new_long
    first, last = start * scale, (start + side) * scale
    box = (first, 0, last, height) if wide else (0, first, width, last)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _padded(image: Image.Image, side: int) -> Image.Image:
    longest = max(image.size)
    width, height = (max(1, round(edge * side / longest)) for edge in image.size)
    canvas = Image.new("RGB", (side, side), PAD_COLOUR)  # pyright: ignore[reportArgumentType] - Pillow 9 says int
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((side - width) // 2, (side - height) // 2))
    return canvas


def _tiles(image: Image.Image, side: int) -> list[Image.Image]:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long <= NEARLY_SQUARE * short:
        return [_centre(image, side)]
    count = min(-(-long // short), MAX_TILES)
    squares: list[Image.Image] = []
    for index in range(count):
        start = round(index * (long - short) / (count - 1))
        left, top = (start, 0) if width > height else (0, start)
        tile = image.crop((left, top, left + short, top + short))
        squares.append(tile.resize((side, side), Image.Resampling.BICUBIC))
    return squares
