"""Whose face gives IdentityNet its keypoints, and where on a pass's canvas they lie.

`session.identity` asks `find_keypoints` once per unit, when sampling starts, and `lay` once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from ..encoders.faces import Face
from ..encoders.keypoints import Box, Fit, Keypoints, Size, crop_keypoints, fit_keypoints, read_keypoints
from ..library.errors import BadImageError, BadUnitError, KeypointsError
from ..library.face_packs import FacePack
from ..units.face_choice import FaceChoice, choice_for, parse_face_choices
from ..units.images import ImageStore, decode_reference, digest
from ..units.keypoint_text import Points, parse_keypoints
from ..units.unit import Unit
from .faces import FacePool, chosen_face
from .features import Reference

POSE_NAME = "the pose photo"


@dataclass(frozen=True)
class FaceKeypoints:
    """Keypoints as they were found: in pixels of a photo of `size`, or given for the picture to be made (None).

    `source` says whose they are: "reference", "pose" or "given".
    """

    source: str
    points: Keypoints | Points
    size: Size | None


class Frame(NamedTuple):
    """The picture that a job makes, in whose pixels a user thinks.

    `crop` is the box of it that is sampled, in img2img "only masked"; None where it is the whole picture.
    """

    size: Size
    crop: Box | None = None


def frame_of(p: Any) -> Frame:
    """The frame of a job that was initialised.

    Source: StableDiffusionProcessingImg2Img.init (modules/processing.py), the same on every host: with "only masked"
    `paste_to` is the crop (x, y, width, height) in the mask's pixels, which are the picture's. A blank mask switches
    `inpaint_full_res` off.
    """
    mask = getattr(p, "mask_for_overlay", None)
    box = getattr(p, "paste_to", None)
    if box is not None and mask is not None and getattr(p, "inpaint_full_res", False):
        x, y, width, height = box
        return Frame(mask.size, (x, y, x + width, y + height))
    return Frame((p.width // 8 * 8, p.height // 8 * 8))


def read_pose(unit: Unit, store: ImageStore) -> Reference | None:
    """The pose photo, where the unit has one. Raises: BadImageError."""
    if not unit.pose:
        return None
    try:
        data = decode_reference(unit.pose[0], store)
    except BadImageError as error:
        raise BadImageError(f"{POSE_NAME}: {error}") from error
    return Reference(POSE_NAME, digest(data), data)


def find_keypoints(
    unit: Unit, pack: FacePack, references: Sequence[Reference], pose: Reference | None, faces: FacePool
) -> FaceKeypoints:
    """The unit's keypoints: of the pose photo's face, of the first reference's, or as they were given.

    Raises: BadUnitError where the pose photo is asked for and missing; NoFaceError naming the picture; IPAdapterError.
    """
    asked = parse_keypoints(unit.keypoints)
    if not isinstance(asked, str):
        return FaceKeypoints("given", asked, None)
    if asked == "pose" and pose is None:
        raise BadUnitError("keypoints is pose and the unit has no pose photo; add one, or set keypoints to reference.")
    if pose is not None and asked != "reference":
        return _of_photo("pose", faces, pack, pose, parse_face_choices(unit.pose_face)[0])
    return _of_photo("reference", faces, pack, references[0], choice_for(parse_face_choices(unit.face), 0))


def _of_photo(
    source: str, faces: FacePool, pack: FacePack, photo: Reference, choice: FaceChoice
) -> FaceKeypoints:
    found = faces.faces(pack, photo, max(1, choice.index))
    size = photo.picture().size
    return FaceKeypoints(source, points_of(chosen_face(found, choice, size, photo.name)), size)


def points_of(face: Face) -> Keypoints:
    """A found face's keypoints as plain numbers."""
    return cast(Keypoints, tuple((float(x), float(y)) for x, y in face.keypoints))


def lay(face: FaceKeypoints, frame: Frame, canvas: Size, fit: str) -> Keypoints:
    """The keypoints in pixels of a pass's canvas.

    They are laid into the frame first, so that every pass of a job shows the same picture; a hires pass of another
    shape cuts it in the middle, as the hosts do with the latents.

    Raises: KeypointsError when a point falls outside the canvas.
    """
    if face.size is None:
        points = read_keypoints(face.points, frame.size)
    else:
        points = fit_keypoints(_within(cast(Keypoints, face.points), face.size), face.size, frame.size, cast(Fit, fit))
    if frame.crop is not None:
        try:
            return crop_keypoints(points, frame.crop, canvas)
        except KeypointsError as error:
            raise KeypointsError(f"Only the masked part is sampled. {error}") from error
    return fit_keypoints(points, frame.size, canvas, "crop")


def _within(points: Keypoints, size: Size) -> Keypoints:
    """A face at its photo's edge may have a keypoint a little beyond it: it is moved to the edge."""
    width, height = size
    return cast(Keypoints, tuple((min(max(x, 0.0), width), min(max(y, 0.0), height)) for x, y in points))
