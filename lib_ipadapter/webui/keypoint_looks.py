"""What IdentityNet is going to see of a photo: the map of its face's keypoints, on the photo's own shape.

A job draws the map on its own canvas (`session.identity`), which the page does not know before.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from PIL import Image

from ..encoders.keypoint_map import draw_keypoints
from ..encoders.keypoints import Keypoints
from ..session.keypoints import points_of
from .face_looks import FacePicture
from .looks import png_data_uri

MAP_SIDE = 320
SHARED = (
    "The pose photo shows {} faces: units with this photo take them from left to right, a unit alone the largest. The "
    "field 'Pose photo's face' chooses one."
)


class KeypointMap(NamedTuple):
    """A map as a PNG data URI; `pending` is 1 while its photo is still to be analysed, `problem` why there is none.

    `note` is what is to be said of a map that shows several people.
    """

    source: str = ""
    pending: int = 0
    problem: str = ""
    note: str = ""


NO_MAP = KeypointMap()


def map_of(picture: FacePicture, *, everybody: bool = False) -> KeypointMap:
    """The map of an analysed photo's chosen face, or of all its faces. Raises: KeypointsError, MissingPackageError."""
    found = picture.found
    if found is None or picture.chosen < 0:
        return KeypointMap(pending=int(picture.pending), problem=picture.problem)
    scale = MAP_SIDE / max(found.size)
    width, height = (max(1, round(side * scale)) for side in found.size)
    people = [
        tuple((min(max(x * scale, 0.0), width), min(max(y * scale, 0.0), height)) for x, y in points_of(face))
        for face in (found.faces if everybody else (found.faces[picture.chosen],))
    ]
    drawn = draw_keypoints(cast("list[Keypoints]", people), (width, height))
    note = SHARED.format(len(people)) if len(people) > 1 else ""
    return KeypointMap(png_data_uri(Image.fromarray(drawn)), int(picture.pending), note=note)
