"""Faces through the API: what a picture shows, jobs with a person, and what is refused with a sentence."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.e2e.client import Client, claimed, distance, encoded, picture
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait

ROUTE = "/ipadapter/v1/faces"
VISIBLE = 0.5
GROUP = (DrawnFace(200, 300, 220, person=1), DrawnFace(500, 180, 130, person=2), DrawnFace(740, 420, 100, person=3))
THREE = encoded(Image.fromarray(face_picture(900, 600, GROUP)))
ONE = encoded(portrait(1))
NONE = encoded(picture((90, 140, 60)))


@pytest.fixture(scope="module")
def webui(webui_url: str) -> Client:
    client = Client(webui_url)
    client.txt2img()
    packs = client.request("/ipadapter/v1/models")[1]["face_packs"]
    if not any(pack["name"] == "buffalo_l" and pack["found"] for pack in packs):
        pytest.skip("no face pack buffalo_l")
    return client


def ask(webui: Client, **body) -> dict:
    status, answer = webui.request(ROUTE, body)
    assert status == 200, answer
    return answer


def embedding(answer: dict, place: int = 0) -> np.ndarray:
    vector = np.asarray(answer["faces"][place]["embedding"])
    assert vector.shape == (512,)
    return vector / np.linalg.norm(vector)


def test_every_face_of_a_picture_from_left_to_right(webui):
    answer = ask(webui, image=THREE)
    assert (answer["width"], answer["height"], answer["pack"], answer["chosen"]) == (900, 600, "buffalo_l", 1)
    assert [face["index"] for face in answer["faces"]] == [1, 2, 3]
    for face, drawn in zip(answer["faces"], GROUP, strict=True):
        assert np.abs(np.subtract(face["box"], drawn.box)).max() < 0.05 * drawn.size
        assert np.abs(np.subtract(face["keypoints"], drawn.keypoints)).max() < 0.05 * drawn.size
        assert 0.5 < face["score"] <= 1
        assert set(face) == {"index", "box", "score", "keypoints", "warnings", "crop"}
        crop = Image.open(io.BytesIO(base64.b64decode(face["crop"].partition(",")[2])))
        assert (crop.format, crop.size, crop.mode) == ("PNG", (224, 224), "RGB")
    json.dumps(answer)


@pytest.mark.parametrize(("choice", "chosen"), [("2", 2), (3, 3), ("@0.9,0.9", 3), ("@0.55,0.3", 2), ("largest", 1)])
def test_a_face_is_chosen(webui, choice, chosen):
    assert ask(webui, image=THREE, face=choice, crops=False)["chosen"] == chosen


def test_crops_and_embeddings_are_there_when_asked_for(webui):
    answer = ask(webui, image=f"data:image/png;base64,{THREE}", crops=False, embedding=True)
    assert {face["crop"] for face in answer["faces"]} == {None}
    same, other = embedding(ask(webui, image=ONE, embedding=True)), embedding(answer, 1)
    assert same @ embedding(answer, 0) > 0.9
    assert abs(same @ other) < 0.6


def test_a_picture_without_a_face_is_no_error(webui):
    answer = ask(webui, image=NONE)
    assert (answer["faces"], answer["chosen"]) == ([], None)
    assert (answer["width"], answer["height"]) == (160, 120)


def test_coordinates_are_of_the_upright_picture(webui):
    image = Image.fromarray(face_picture(600, 400, [DrawnFace(450, 200, 160)])).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    answer = ask(webui, image=base64.b64encode(buffer.getvalue()).decode(), crops=False)
    assert (answer["width"], answer["height"]) == (600, 400)
    assert np.abs(np.subtract(answer["faces"][0]["box"], (370, 120, 530, 280))).max() < 10


BAD = {
    "unknown key": ({"imge": ONE}, "imge"),
    "no picture": ({}, "image is None"),
    "a number for a picture": ({"image": 7}, "image is 7"),
    "not base64": ({"image": "!!!"}, "base64"),
    "not a picture": ({"image": base64.b64encode(b"nothing" * 20).decode()}, "picture"),
    "an id that is not here": ({"image": "sha256:" + "0" * 64}, "not in"),
    "a path": ({"image": "/etc/passwd"}, "path"),
    "a choice that is none": ({"image": ONE, "face": "third"}, "face is 'third'"),
    "two choices": ({"image": ONE, "face": "1; 2"}, "one choice"),
    "a face that is not there": ({"image": THREE, "face": "9"}, "9"),
    "no such pack": ({"image": ONE, "pack": "buffalo_s"}, "buffalo_s"),
    "a list for a pack": ({"image": ONE, "pack": ["buffalo_l"]}, "pack is"),
    "text for a switch": ({"image": ONE, "embedding": "yes"}, "embedding is 'yes'"),
    "a number for a switch": ({"image": ONE, "crops": 1}, "crops is 1"),
    "a list": ([ONE], "JSON object"),
    "a string": ("picture", "JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_sentence_and_422(webui, case):
    body, said = BAD[case]
    status, answer = webui.request(ROUTE, body)
    assert status == 422, answer
    assert said in answer["detail"]
    assert "Traceback" not in answer["detail"]
    assert answer["detail"].rstrip().endswith(".")


def test_the_installed_packs_are_listed(webui):
    packs = {pack["name"]: pack for pack in webui.request("/ipadapter/v1/models")[1]["face_packs"]}
    assert packs["buffalo_l"]["found"]
    assert set(packs) == {"buffalo_l", "antelopev2"}


def test_a_person_changes_the_picture_and_leaves_nothing_behind(webui):
    plain = webui.txt2img()
    person = webui.txt2img({"images": [ONE], "intent": "face"})
    assert distance(person, plain) > VISIBLE
    record = claimed(person)
    assert record["intent"] == "face"
    assert record["ran"]["faces"].split()[0] == "buffalo_l"
    assert distance(webui.txt2img(), plain) == 0


def test_another_face_of_the_photo_is_another_person(webui):
    first, second = (webui.txt2img({"images": [THREE], "intent": "face", "face": str(n)}) for n in (1, 2))
    assert distance(first, second) > 0
    assert distance(first, webui.txt2img({"images": [THREE], "intent": "face"})) == 0


def test_a_photo_without_a_face_is_refused_by_its_name(webui):
    result = webui.txt2img({"images": [ONE, NONE], "intent": "face"})
    assert result.status == 422
    assert "picture 2" in result.detail
