"""A face turned upright and cut out, as ArcFace was trained to see it.

The engines call it before they recognise, `session` for the crop that FaceID-Plus shows to CLIP, the page for what it
shows of a face. numpy, and OpenCV for the warp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..library.errors import FaceModelError
from .face_packages import import_cv2
from .faces import Face, Picture, checked
from .keypoints import Keypoints

TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where ArcFace wants eyes, nose and mouth corners in 112 x 112 pixels (insightface, utils/face_align.py)."""

TEMPLATE_BOX = (14.0, 0.0, 98.0, 112.0)
"""The face in those 112 x 112 pixels: as high as they are and, by choice, three quarters as wide."""

LARGEST_WARP = 32766
"""OpenCV's warp keeps coordinates in 16 bits: longer edges are cut to the face first."""


def align_face(picture: Picture, face: Face, side: int) -> Picture:
    """The aligned face, RGB `(side, side, 3)`; black where the picture ends.

    `side` is a multiple of 112, or of 128: the face is not larger at 128 than at 112, there is more around it
    (insightface's `norm_crop`).

    Raises: FaceModelError when all keypoints are one point, ValueError for another side.
    """
    cv2 = import_cv2()
    matrix = face_transform(face, side)
    picture, matrix = _around_the_face(checked(picture), matrix, side)
    return cv2.warpAffine(picture, matrix, (side, side), borderValue=0.0)


def face_transform(face: Face, side: int) -> NDArray[np.float64]:
    """The similarity `(2, 3)` that takes the picture's pixels to the aligned crop's.

    Least squares without reflection between the keypoints and the template: Umeyama 1991, "Least-squares estimation of
    transformation parameters between two point patterns", equations 34 to 43.

    Raises: FaceModelError when all keypoints are one point, ValueError for a side that is no multiple of 112 or 128.
    """
    target = _template(side)
    source = np.asarray(face.keypoints, np.float32)  # the detector's own precision
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    source_centred, target_centred = source - source_mean, target - target_mean
    variance = source_centred.var(axis=0).sum()
    if not np.isfinite(variance) or variance == 0:
        x, y = face.keypoints[0]
        raise FaceModelError(
            f"A face was found whose eyes, nose and mouth are all at one point ({x:.0f}, {y:.0f}); it cannot be turned "
            "upright. The detector's file is not what it should be: check the face pack."
        )
    covariance = target_centred.T @ source_centred / len(source)
    left, singular, right = np.linalg.svd(covariance)
    # a rotation, never a mirror image: with two dimensions this is all that equations 39, 40 and 43 come to
    signs = np.asarray((1.0, 1.0 if np.linalg.det(left) * np.linalg.det(right) > 0 else -1.0))
    rotation = left @ np.diag(signs) @ right
    scale = 1.0 / variance * (singular @ signs)
    matrix = np.empty((2, 3))
    matrix[:, 2] = target_mean - scale * (rotation @ source_mean)
    matrix[:, :2] = rotation * scale
    return matrix


def box_of(keypoints: Keypoints) -> tuple[float, float, float, float]:
    """The box of a face of which only the keypoints are known: around `TEMPLATE_BOX`, laid on them.

    Raises: FaceModelError when all keypoints are one point.
    """
    matrix = face_transform(Face((0.0, 0.0, 0.0, 0.0), 0.0, keypoints), 112)
    left, top, right, bottom = TEMPLATE_BOX
    corners = np.asarray([(left, top), (right, top), (right, bottom), (left, bottom)]) - matrix[:, 2]
    laid = corners @ np.linalg.inv(matrix[:, :2]).T
    (x1, y1), (x2, y2) = laid.min(axis=0).tolist(), laid.max(axis=0).tolist()
    return x1, y1, x2, y2


def _template(side: int) -> NDArray[np.float32]:
    if side < 1 or (side % 112 and side % 128):
        raise ValueError(f"An aligned face is a multiple of 112 or of 128 pixels wide, not {side}.")
    ratio, shift = (side / 112, 0.0) if side % 112 == 0 else (side / 128, 8.0 * side / 128)
    target = np.asarray(TEMPLATE, np.float32) * ratio
    target[:, 0] += shift
    return target


def _around_the_face(
    picture: Picture, matrix: NDArray[np.float64], side: int
) -> tuple[Picture, NDArray[np.float64]]:
    """A picture that the warp can take: as it is, or what of it the crop shows, with a pixel to interpolate."""
    height, width = picture.shape[:2]
    if max(width, height) <= LARGEST_WARP:
        return picture, matrix
    corners = np.asarray([(0, 0), (side, 0), (0, side), (side, side)]) - matrix[:, 2]
    reached = corners @ np.linalg.inv(matrix[:, :2]).T
    low = np.clip(np.floor(reached.min(axis=0)).astype(int) - 2, 0, (width - 1, height - 1))
    high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 3, low + 1, (width, height))
    high = np.minimum(high, low + LARGEST_WARP)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ low
    return picture[low[1] : high[1], low[0] : high[0]], moved
