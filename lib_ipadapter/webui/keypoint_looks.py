"""What IdentityNet is going to see: the map of a face's keypoints, on the shape of the picture to be made.

A job draws the map on each pass's canvas (`session.identity`); the page draws it small, on the size that its fields
say, and so that its points can be moved. `page` and `identity_part` ask for it, `keypoint_html` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from PIL import Image

from ..encoders.keypoint_map import draw_keypoints
from ..encoders.keypoints import Keypoints, Size, read_keypoints, relative_keypoints
from ..session.keypoints import FaceKeypoints, Frame, lay, points_of
from ..units.keypoint_text import Points
from .face_looks import FacePicture
from .looks import png_data_uri

MAP_SIDE = 320
SHARED = (
    "The pose photo shows {} faces: units with this photo take them from left to right, a unit alone the largest. The "
    "field 'Pose photo's face' chooses one."
)
USUAL_SIZE = (1024, 1024)


class MapLayout(NamedTuple):
    """The size of the picture to be made, None where the page does not know it, and the unit's fit."""

    size: Size | None = None
    fit: str = "crop"


class KeypointMap(NamedTuple):
    """A map as a PNG data URI; `pending` is 1 while its photo is still to be analysed, `problem` why there is none.

    `points` are its five, as fractions of the picture of `size`; none where it shows several people, of whom `note`
    says what there is to say.
    """

    source: str = ""
    pending: int = 0
    problem: str = ""
    points: Points = ()
    size: Size = (0, 0)
    note: str = ""


NO_MAP = KeypointMap()


def map_of(picture: FacePicture, layout: MapLayout, *, everybody: bool = False) -> KeypointMap:
    """The map of an analysed photo's chosen face, or of all its faces; of the photo's shape where none is known.

    Raises: KeypointsError, MissingPackageError.
    """
    found = picture.found
    if found is None or picture.chosen < 0:
        return KeypointMap(pending=int(picture.pending), problem=picture.problem)
    size = layout.size or found.size
    shown = found.faces if everybody else (found.faces[picture.chosen],)
    faces = [FaceKeypoints("reference", points_of(face), found.size) for face in shown]
    drawn = _drawn([lay(face, Frame(size), size, layout.fit) for face in faces], size)
    return drawn._replace(pending=int(picture.pending), note=SHARED.format(len(faces)) if len(faces) > 1 else "")


def map_of_points(points: Points, layout: MapLayout) -> KeypointMap:
    """The map of given points. Raises: KeypointsError, MissingPackageError."""
    size = layout.size or USUAL_SIZE
    return _drawn([read_keypoints(points, size)], size)


def _drawn(people: Sequence[Keypoints], size: Size) -> KeypointMap:
    """The map of people's points in pixels of a picture of `size`, small."""
    scale = MAP_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    parts = [relative_keypoints(points, size) for points in people]
    laid = [cast(Keypoints, tuple((x * width, y * height) for x, y in points)) for points in parts]
    source = png_data_uri(Image.fromarray(draw_keypoints(laid, (width, height))))
    return KeypointMap(source, points=parts[0] if len(parts) == 1 else (), size=size)
