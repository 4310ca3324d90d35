"""Which part of the whole picture a job samples: a crop while inpainting "only masked", all of it otherwise.

`session.regions` asks, as a unit's region is a part of the whole picture. The hosts cut in
`StableDiffusionProcessingImg2Img.init` (modules/processing.py), alike in all of them, and keep the cut in `p.paste_to`:
the box in pixels of the picture that was sent, which `images.resize_image` in mode 2 then fits into the job's size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..library.errors import UnsupportedHostStateError


class Crop(NamedTuple):
    """`box` is (x, y, width, height) in pixels of a picture of `picture` (width, height)."""

    picture: tuple[int, int]
    box: tuple[int, int, int, int]


def sampled_crop(p: Any) -> Crop | None:
    """The part that the job `p` samples; None where that is the whole picture. Ask after `p.init`.

    Raises: UnsupportedHostStateError where the job samples a part and the host does not say which.
    """
    if getattr(p, "image_mask", None) is None or not getattr(p, "inpaint_full_res", False):
        return None
    advice = "inpaint the whole picture, or let the unit act everywhere."
    box = getattr(p, "paste_to", None)
    if not isinstance(box, (tuple, list)) or len(box) != 4 or min(box[2:]) <= 0:
        raise UnsupportedHostStateError(
            "The job inpaints the masked area only, and the host does not say where that is in the picture, so a "
            f"unit's region cannot be placed: {advice}"
        )
    sizes = {tuple(image.size) for image in getattr(p, "init_images", None) or ()}
    if len(sizes) != 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no"
        raise UnsupportedHostStateError(
            f"The job inpaints the masked area of {shown} pictures at once, in each another part of it, so a unit's "
            f"region cannot be placed: send pictures of one size, {advice}"
        )
    x, y, width, height = (int(side) for side in box)
    return Crop(sizes.pop(), (x, y, width, height))
