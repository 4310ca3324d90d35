"""Whose face gives IdentityNet its keypoints, and where on a pass's canvas they, and the face around them, lie.

`session.ready` asks `find_keypoints` once per unit, when sampling starts; `session.identity` asks `lay` and
`session.people` asks `lay_box` once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from ..core.masks import PIXELS_PER_LATENT
from ..encoders.face_alignment import box_of
from ..encoders.faces import Face
from ..encoders.keypoints import (
    Box,
    Fit,
    Keypoints,
    Size,
    crop_box,
    crop_keypoints,
    fit_box,
    fit_keypoints,
    read_keypoints,
)
from ..hosts.crops import Crop, sampled_crop
from ..library.errors import KeypointsError
from ..library.face_packs import FacePack
from ..units.face_choice import choice_for, parse_face_choices
from ..units.keypoint_text import Points, parse_keypoints
from ..units.unit import Unit
from .faces import FacePool, chosen_face
from .features import Reference
from .seats import Seat


@dataclass(frozen=True)
class FaceKeypoints:
    """Keypoints as they were found: in pixels of a photo of `size`, or given for the picture to be made (None).

    `source` says whose they are: "reference", "pose" or "given". `box` is the face's, in the same pixels, where it was
    found in a photo. Of a pose photo, `photo` is its digest, and `place` which of its faces it is, "2 of 3".
    """

    source: str
    points: Keypoints | Points
    size: Size | None
    box: Box | None = None
    photo: str = ""
    place: str = ""


class Frame(NamedTuple):
    """The picture that a job makes, in whose pixels a user thinks.

    `crop` is the part of it that is sampled, in img2img "only masked"; None where it is the whole picture.
    """

    size: Size
    crop: Crop | None = None

    def pixels(self, canvas: Size) -> float:
        """How many pixels of a pass's canvas, across, one of the frame's takes."""
        if self.crop is not None:
            left, _, right, _ = self.crop.seen(canvas)
            return canvas[0] / (right - left)
        return max(canvas[0] / self.size[0], canvas[1] / self.size[1])


def frame_of(p: Any) -> Frame:
    """The frame of a job that was initialised. Raises: UnsupportedHostStateError where its crop is not known."""
    crop = sampled_crop(p)
    return Frame(first_canvas(p)) if crop is None else Frame(crop.picture, crop)


def first_canvas(p: Any) -> Size:
    """The canvas of the pass that comes first: the hosts sample at the asked size, in whole latents."""
    return (p.width // PIXELS_PER_LATENT * PIXELS_PER_LATENT, p.height // PIXELS_PER_LATENT * PIXELS_PER_LATENT)


def find_keypoints(
    unit: Unit, pack: FacePack, references: Sequence[Reference], seat: Seat | None, faces: FacePool
) -> FaceKeypoints:
    """The unit's keypoints: as they were given, of its face in a pose photo, or of the first reference's.

    Raises: NoFaceError naming the picture; IPAdapterError.
    """
    asked = parse_keypoints(unit.keypoints)
    if not isinstance(asked, str):
        return FaceKeypoints("given", asked, None)
    if seat is not None:
        face, size, number, count = seat.take(pack, faces)
        return FaceKeypoints("pose", points_of(face), size, face.box, seat.photo.digest, f"{number} of {count}")
    photo, choice = references[0], choice_for(parse_face_choices(unit.face), 0)
    size = photo.picture().size
    face = chosen_face(faces.faces(pack, photo, max(1, choice.index)), choice, size, photo.name)
    return FaceKeypoints("reference", points_of(face), size, face.box)


def points_of(face: Face) -> Keypoints:
    """A found face's keypoints as plain numbers."""
    return cast(Keypoints, tuple((float(x), float(y)) for x, y in face.keypoints))


def lay(face: FaceKeypoints, frame: Frame, canvas: Size, fit: str) -> Keypoints:
    """The keypoints in pixels of a pass's canvas.

    They are laid into the frame first, so that every pass of a job shows the same picture; a hires pass of another
    shape cuts it in the middle, as the hosts do with the latents. Only of a crop, points may lie outside.

    Raises: KeypointsError when a point falls outside the frame, or outside the canvas that shows all of it.
    """
    if face.size is None:
        points = read_keypoints(face.points, frame.size)
    else:
        points = fit_keypoints(_within(cast(Keypoints, face.points), face.size), face.size, frame.size, cast(Fit, fit))
    if frame.crop is not None:
        return crop_keypoints(points, frame.crop.seen(canvas), canvas)
    return fit_keypoints(points, frame.size, canvas, "crop")


def lay_box(face: FaceKeypoints, frame: Frame, canvas: Size, fit: str) -> Box:
    """The face's box in pixels of a pass's canvas, where `lay` lays its keypoints; it may reach beyond the canvas.

    Where only the keypoints are known, the box is that of a face which has them.
    """
    if face.size is not None:
        assert face.box is not None
        box = fit_box(face.box, face.size, frame.size, cast(Fit, fit))
    else:
        points = read_keypoints(face.points, frame.size)
        if len(set(points)) == 1:
            raise KeypointsError(
                f"The five keypoints all lie at {points[0][0]:.0f}, {points[0][1]:.0f}, so it is not known how large "
                "the face is: give five different points, or set the region to a part of the picture."
            )
        box = box_of(points)
    if frame.crop is not None:
        return crop_box(box, frame.crop.seen(canvas), canvas)
    return fit_box(box, frame.size, canvas, "crop")


def _within(points: Keypoints, size: Size) -> Keypoints:
    """A face at its photo's edge may have a keypoint a little beyond it: it is moved to the edge."""
    width, height = size
    return cast(Keypoints, tuple((min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in points))
