"""Which part of the whole picture a job samples: a crop while inpainting "only masked", all of it otherwise.

`session.keypoints` asks, as keypoints and regions lie in the whole picture. The hosts cut in
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

    def fitted(self, canvas: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(offset, length) in pixels of a canvas of (width, height), across and down, into which the box is fitted.

        Formula: modules/images.py, resize_image, mode 2 ("resize and fill") of every host.
        """
        (width, height), (_, _, box_width, box_height) = canvas, self.box
        wider = width / height < box_width / box_height
        across = width if wider else max(1, box_width * height // box_height)
        down = max(1, box_height * width // box_width) if wider else height
        return (width // 2 - across // 2, across), (height // 2 - down // 2, down)

    def seen(self, canvas: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the picture that a whole canvas of (width, height) stands for.

        Where the box has another shape than the canvas this reaches beyond it; there the hosts repeat the box's edge.
        """
        sides: list[tuple[float, float]] = []
        for axis, (offset, length) in enumerate(self.fitted(canvas)):
            pixel = self.box[2 + axis] / length
            start = self.box[axis] - offset * pixel
            sides.append((start, start + canvas[axis] * pixel))
        (left, right), (top, bottom) = sides
        return left, top, right, bottom


def sampled_crop(p: Any) -> Crop | None:
    """The part that the job `p` samples; None where that is the whole picture. Ask after `p.init`.

    Raises: UnsupportedHostStateError where the job samples a part and the host does not say which.
    """
    if getattr(p, "image_mask", None) is None or not getattr(p, "inpaint_full_res", False):
        return None
    cannot, advice = "so a unit's region or keypoints cannot be placed", (
        "inpaint the whole picture, or let the units act everywhere and set their keypoints to none."
    )
    box = getattr(p, "paste_to", None)
    if not isinstance(box, (tuple, list)) or len(box) != 4 or min(box[2:]) <= 0:
        raise UnsupportedHostStateError(
            "The job inpaints the masked area only, and the host does not say where that is in the picture, "
            f"{cannot}: {advice}"
        )
    sizes = {tuple(image.size) for image in getattr(p, "init_images", None) or ()}
    if len(sizes) != 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no"
        raise UnsupportedHostStateError(
            f"The job inpaints the masked area of {shown} pictures at once, in each another part of it, {cannot}: "
            f"send pictures of one size, {advice}"
        )
    x, y, width, height = (int(side) for side in box)
    return Crop(sizes.pop(), (x, y, width, height))
