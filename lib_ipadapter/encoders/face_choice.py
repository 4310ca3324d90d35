"""Which of the faces in a picture is meant, and what is wrong with it.

`session` chooses the face that a unit's field `face` names; it and the page say what `face_warnings` finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..library.errors import NoFaceError
from .face_alignment import align_face
from .face_packages import import_cv2
from .faces import Face, Picture, Point

Choice = Literal["largest", "best", "index", "point"]

SMALL = 64
"""Pixels, a face's shorter edge: below it the recogniser's 112 are made of fewer than a third as many."""

BLURRED = 0.02
"""Variance of the Laplacian over the variance of the grey values, both of the aligned face at 112. Seven sharp faces in
two photographs had 0.082 to 0.264; with a Gaussian blur of one pixel of those 112 they had 0.016 to 0.043, of one and
a half 0.007 to 0.023, of two 0.004 to 0.013. (Pech-Pacheco et al. 2000; divided by the contrast, because the variance
alone calls dark faces blurred.)"""

TURNED = 45
"""Degrees to the side; ArcFace's likeness falls off beyond."""

NOSE = 0.7
"""How far a nose's tip stands out from the plane through eyes and mouth, over half the distance between the eyes."""


def choose_face(
    faces: Sequence[Face],
    how: Choice = "largest",
    *,
    index: int = 1,
    point: Point = (0.5, 0.5),
    size: tuple[int, int],
    name: str = "the picture",
) -> Face:
    """The face that is meant: the largest, the one with the best score, the `index`-th from the left, from 1, or the
    one at `point`.

    `point` is (x, y) as shares of `size`, which is (width, height): the face whose box contains it, the smallest if
    several do, else the one whose centre is nearest.

    Raises: NoFaceError when there is none, or fewer than `index`; ValueError for an unknown way or an index below 1.
    """
    if not faces:
        raise NoFaceError(f"No face was found in {name}; use a picture in which one can be seen.")
    if how == "largest":
        return max(faces, key=lambda face: face.area)
    if how == "best":
        return max(faces, key=lambda face: face.score)
    if how == "point":
        return _at(faces, (point[0] * size[0], point[1] * size[1]))
    if how != "index" or index < 1:
        raise ValueError(f"Faces are chosen by largest, best, index from 1 or point, not by {how!r} {index}.")
    if index > len(faces):
        there = "one face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise NoFaceError(
            f"Face {index} from the left is asked for, but {there} found in {name}; choose 1"
            + (f" to {len(faces)}." if len(faces) > 1 else ".")
        )
    return sorted(faces, key=lambda face: face.centre)[index - 1]


def _at(faces: Sequence[Face], place: Point) -> Face:
    x, y = place
    around = [face for face in faces if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]]
    if around:
        return min(around, key=lambda face: face.area)
    return min(faces, key=lambda face: math.dist(face.centre, place))


def face_warnings(picture: Picture, face: Face) -> tuple[str, ...]:
    """What makes a face a poor reference, in sentences with the numbers: small, blurred, turned to the side.

    A small face is not called blurred as well: enlarging it is what blurs it.

    Raises: MissingPackageError without OpenCV, FaceModelError when all keypoints are one point.
    """
    warnings: list[str] = []
    if min(face.width, face.height) < SMALL:
        eyes = math.dist(face.keypoints[0], face.keypoints[1])
        warnings.append(
            f"The face is small: {face.width:.0f} x {face.height:.0f} pixels, {eyes:.0f} between the eyes; below "
            f"{SMALL} likeness is lost. Use a larger picture of it."
        )
    else:
        sharpness = face_sharpness(picture, face)
        if sharpness < BLURRED:
            warnings.append(
                f"The face is blurred: sharpness {sharpness:.3f}, where sharp faces have over {BLURRED:.2f}. Use a "
                "sharper picture."
            )
    turned = face_yaw(face)
    if abs(turned) > TURNED:
        warnings.append(
            f"The face is turned about {abs(turned):.0f} degrees to the side; beyond {TURNED} likeness is lost. Use a "
            "picture from the front."
        )
    return tuple(warnings)


def face_sharpness(picture: Picture, face: Face) -> float:
    """Variance of the aligned face's Laplacian over that of its grey values; see `BLURRED`. 0 for one flat colour."""
    cv2 = import_cv2()
    grey = cv2.cvtColor(align_face(picture, face, 112), cv2.COLOR_RGB2GRAY)
    # The corners show what is behind the face, which may be sharp when the face is not.
    rows, columns = np.mgrid[:112, :112] - 55.5
    inside = (columns / 45) ** 2 + (rows / 52) ** 2 <= 1
    contrast = float(grey[inside].var())
    return float(cv2.Laplacian(grey, cv2.CV_64F)[inside].var()) / contrast if contrast > 0 else 0.0


def face_yaw(face: Face) -> float:
    """About how far a face is turned, in degrees: positive when its nose points to the right of the picture.

    From where the nose lies between the eyes, measured across the line from eyes to mouth: half the eyes' distance
    shrinks with the cosine, the nose's place grows with the sine. 0 where the keypoints do not say.
    """
    first, second, nose, third, fourth = (np.asarray(point) for point in face.keypoints)
    eyes, mouth = (first + second) / 2, (third + fourth) / 2
    down = mouth - eyes
    length = float(np.hypot(*down))
    if length == 0:
        return 0.0
    across = np.asarray((down[1], -down[0])) / length
    return math.degrees(math.atan2(float((nose - eyes) @ across), NOSE * float((second - first) @ across) / 2))
