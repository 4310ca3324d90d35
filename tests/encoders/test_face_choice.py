"""Which face is meant, and what is said about it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lib_ipadapter.encoders.face_choice import choose_face, face_sharpness, face_warnings, face_yaw
from lib_ipadapter.encoders.faces import Face, face_of
from lib_ipadapter.library.errors import NoFaceError

from .face_pictures import DrawnFace, blank, draw_face

SIZE = (1000, 500)


def face(x: float, y: float, size: float, score: float = 0.8) -> Face:
    drawn = DrawnFace(x, y, size)
    return face_of(drawn.box, score, drawn.keypoints)


MIDDLE, LEFT, RIGHT = face(500, 300, 200, 0.7), face(100, 100, 80, 0.9), face(900, 400, 100, 0.8)
FACES = (MIDDLE, RIGHT, LEFT)


def test_the_largest_is_the_default() -> None:
    assert choose_face(FACES, size=SIZE) is MIDDLE


def test_the_best_score() -> None:
    assert choose_face(FACES, "best", size=SIZE) is LEFT


def test_left_to_right_from_one() -> None:
    assert [choose_face(FACES, "index", index=index, size=SIZE) for index in (1, 2, 3)] == [LEFT, MIDDLE, RIGHT]


def test_an_index_beyond_them_says_how_many_there_are() -> None:
    with pytest.raises(NoFaceError, match="Face 4 from the left is asked for, but 3 faces were found in photo 2"):
        choose_face(FACES, "index", index=4, size=SIZE, name="photo 2")
    with pytest.raises(NoFaceError, match=r"but one face was found in the picture; choose 1\."):
        choose_face(FACES[:1], "index", index=2, size=SIZE)


@pytest.mark.parametrize(
    ("point", "expected"),
    [((0.5, 0.6), MIDDLE), ((0.1, 0.2), LEFT), ((0.99, 0.99), RIGHT), ((0.3, 0.2), LEFT), ((0.7, 0.6), MIDDLE)],
)
def test_a_click_takes_the_face_under_it_or_the_nearest(point: tuple[float, float], expected: Face) -> None:
    assert choose_face(FACES, "point", point=point, size=SIZE) is expected


def test_a_click_on_two_takes_the_one_in_front() -> None:
    inner = face(450, 280, 60)
    assert choose_face((MIDDLE, inner), "point", point=(0.45, 0.56), size=SIZE) is inner


def test_no_faces_and_unknown_ways() -> None:
    with pytest.raises(NoFaceError, match="photo 2"):
        choose_face((), size=SIZE, name="photo 2")
    with pytest.raises(ValueError, match="index"):
        choose_face(FACES, "index", index=0, size=SIZE)


def drawn_face(size: float, blur: float = 0.0) -> tuple[np.ndarray, Face]:
    drawn = DrawnFace(300, 300, size)
    picture = draw_face(blank(600, 600), drawn)
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), blur * size / 112)
    return picture, face_of(drawn.box, 0.9, drawn.keypoints)


@pytest.mark.parametrize("size", [112, 224, 400])
def test_a_good_face_has_no_warning(size: float) -> None:
    assert face_warnings(*drawn_face(size)) == ()


def test_a_small_face_is_named_with_its_size() -> None:
    (warning,) = face_warnings(*drawn_face(40))
    assert "40 x 40 pixels, 13 between the eyes" in warning


def test_a_blurred_face_is_named_with_its_sharpness() -> None:
    picture, face = drawn_face(224, blur=2)
    (warning,) = face_warnings(picture, face)
    assert f"sharpness {face_sharpness(picture, face):.3f}" in warning
    assert face_warnings(*drawn_face(224, blur=0.3)) == ()


def test_darkness_is_not_blur() -> None:
    picture, face = drawn_face(224)
    dark = (picture // 4).astype(np.uint8)
    assert face_sharpness(dark, face) == pytest.approx(face_sharpness(picture, face), rel=0.5)


def turned(yaw: float, roll: float = 0.0) -> Face:
    """A head of the proportions that the estimate assumes, seen under an angle: eyes at 1, the nose 0.7 before them."""
    sin, cos = np.sin(np.radians(yaw)), np.cos(np.radians(yaw))
    points = np.asarray([(-cos, -1), (cos, -1), (0.7 * sin, 0), (-0.8 * cos, 1), (0.8 * cos, 1)]) * 50
    tilt, lean = np.cos(np.radians(roll)), np.sin(np.radians(roll))
    points = points @ np.asarray([(tilt, lean), (-lean, tilt)]) + 300
    return face_of((220, 220, 380, 380), 0.9, points.tolist())


@pytest.mark.parametrize("roll", [0, 25, -60])
@pytest.mark.parametrize("yaw", [0, 20, -50, 75, 90])
def test_yaw_is_measured_whatever_the_tilt(yaw: float, roll: float) -> None:
    assert face_yaw(turned(yaw, roll)) == pytest.approx(yaw, abs=0.5)


def test_a_profile_is_named_with_its_angle() -> None:
    picture = blank(600, 600, seed=1)
    assert face_warnings(picture, turned(40)) == ()
    (warning,) = face_warnings(picture, turned(-60))
    assert "about 60 degrees" in warning


def test_keypoints_that_say_nothing_have_no_angle() -> None:
    assert face_yaw(face_of((0, 0, 1, 1), 0.9, [(5, 5)] * 5)) == 0.0
