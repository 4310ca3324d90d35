"""What the preview of a face adapter shows: a button for every face, the one that counts, what is wrong with it."""

from __future__ import annotations

import re

import pytest
import torch

from lib_ipadapter.encoders.faces import Face
from lib_ipadapter.session.faces import chosen_face
from lib_ipadapter.units.face_choice import parse_face_choices
from lib_ipadapter.webui.face_html import MAX_SHOWN, FacePreview, face_preview_html
from lib_ipadapter.webui.face_looks import FacePicture, FoundFaces, ReadFace

HOSTILE = '"><img src=x onerror=alert(1)>'


def face(x: float, y: float, side: float = 20, score: float = 0.8) -> Face:
    points = tuple((x + side * at, y + side * at) for at in (0.3, 0.6, 0.5, 0.4, 0.7))
    return Face((x, y, x + side, y + side), score, points)  # pyright: ignore[reportArgumentType]


def picture(*faces: Face, chosen: int = 0, problem: str = "", warnings: tuple[str, ...] = (), read: bool = True):
    found = FoundFaces("data:image/jpeg;base64,AAAA", (200, 100), faces)
    crop = ReadFace("data:image/png;base64,BBBB", warnings, torch.ones(512)) if read else None
    return FacePicture("sha256:" + "a" * 64, "picture 2", found, chosen, crop, problem)


def test_every_face_is_a_button_over_its_place_and_one_is_pressed():
    html = face_preview_html(FacePreview([picture(face(10, 20), face(100, 40, score=0.456), chosen=1)]))
    labels = re.findall(r'<button [^>]*aria-label="([^"]+)" aria-pressed="(\w+)"', html)
    assert labels == [("Face 1 of 2, score 0.80", "false"), ("Face 2 of 2, score 0.46", "true")]
    assert re.findall(r"<span>(.*?)</span></button>", html) == ["1<i> · 0.80</i>", "2<i> · 0.46</i>"]
    assert re.findall(r"left:([\d.]+)%;top:([\d.]+)%;width:([\d.]+)%;height:([\d.]+)%", html) == [
        ("5.00", "20.00", "10.00", "20.00"), ("50.00", "40.00", "10.00", "20.00"),
    ]  # fmt: skip
    assert re.findall(r'data-point="([^"]+)"', html) == ["@0.1,0.3", "@0.55,0.5"]
    assert "<figcaption>Picture 2, 2 faces, number 2 counts<" in html
    assert html.count("<circle") == 10
    assert html.count('<circle class="ipadapter-face-point ipadapter-face-chosen"') == 5


def test_a_click_on_a_face_means_that_face():
    """Also where the picture cuts it, and where a smaller one covers its middle."""
    shown = (face(-15, 70), face(10, 0, 90), face(40, 35, 20), face(45, 40, 8), face(190, 90))
    html = face_preview_html(FacePreview([picture(*shown)]))
    points = re.findall(r'data-point="([^"]+)"', html)
    assert len(points) == len(shown)
    for point, meant in zip(points, shown, strict=True):
        (choice,) = parse_face_choices(point)
        by_area = sorted(shown, key=lambda one: -one.area)
        assert chosen_face(by_area, choice, (200, 100), "it") is meant


def test_smaller_faces_lie_above_larger_ones():
    html = face_preview_html(FacePreview([picture(face(40, 40, 10), face(0, 0, 90))]))
    small, large = (int(layer) for layer in re.findall(r"z-index:(\d+)", html))
    assert small > large


def test_of_a_crowd_the_largest_and_the_chosen_one_are_buttons():
    crowd = [face(number % 40 * 5, number // 40 * 4, 3 + (number % 7)) for number in range(1000)]
    smallest = min(range(1000), key=lambda place: crowd[place].area)
    html = face_preview_html(FacePreview([picture(*crowd, chosen=smallest)]))
    assert MAX_SHOWN <= html.count("<button") <= MAX_SHOWN + 1
    assert f"Face {smallest + 1} of 1000" in html
    assert re.search(r"and (899|900) more", html)
    assert len(html) < 10**6


@pytest.mark.parametrize(("with_clip", "says"), [(True, "what CLIP sees"), (False, "what goes in")])
def test_the_crop_says_who_sees_it(with_clip, says):
    html = face_preview_html(FacePreview([picture(face(10, 20))], with_clip=with_clip))
    assert 'src="data:image/png;base64,BBBB"' in html
    assert says in html
    assert ("CLIP" in html) == with_clip


def test_warnings_are_notes_and_a_problem_is_an_error():
    html = face_preview_html(
        FacePreview([picture(face(1, 1), warnings=("The face is 20 pixels wide.",)),
                     picture(chosen=-1, read=False, problem=f"picture 2: no face {HOSTILE}")], notes=["They differ."])
    )  # fmt: skip
    assert '<p role="status" class="ipadapter-note">The face is 20 pixels wide.</p>' in html
    assert re.search('<p role="status" class="ipadapter-error">picture 2: no face', html)
    assert "They differ." in html
    assert HOSTILE not in html


def test_what_is_pending_says_so_and_shows_what_is_known():
    unknown = FacePicture("sha256:" + "a" * 64, "picture 1")
    known = picture(face(1, 1), read=False)
    preview = FacePreview([unknown, known, picture(face(1, 1))])
    html = face_preview_html(preview)
    assert preview.pending == 2
    assert "Looking for faces" in html and "Aligning" in html
    assert html.count("<button") == 2


def test_no_references_are_nothing():
    assert face_preview_html(FacePreview()) == ""
