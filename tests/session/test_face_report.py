"""What programs are told of a picture's faces: all of them, in order, and of a crowd no more than is bounded."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
import torch
from PIL import Image

from lib_ipadapter.encoders.faces import Face, face_of
from lib_ipadapter.library.errors import NoFaceError
from lib_ipadapter.library.face_packs import FacePack
from lib_ipadapter.session.face_report import MAX_DETAILED, report_faces
from lib_ipadapter.session.faces import FacePool
from lib_ipadapter.session.features import Reference
from lib_ipadapter.units.face_choice import FaceChoice

WIDTH, HEIGHT = 800, 500


def reference() -> Reference:
    buffer = io.BytesIO()
    Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB").save(buffer, "PNG")
    return Reference("The picture", "sha256:" + "a" * 64, buffer.getvalue())


def face(x: float, y: float, side: float) -> Face:
    template = ((0.34, 0.46), (0.66, 0.46), (0.5, 0.64), (0.37, 0.82), (0.63, 0.82))
    points = [(x + side * u, y + side * v) for u, v in template]
    return face_of((x, y, x + side, y + side), 0.9, points)


class Pool:
    """Finds what it was given; `recognised` counts the faces that were embedded."""

    def __init__(self, *faces: Face) -> None:
        self.found = tuple(sorted(faces, key=lambda one: -one.area))
        self.recognised = 0

    def faces(self, pack: Any, reference: Reference, wanted: int = 1) -> tuple[Face, ...]:
        if not self.found:
            raise NoFaceError("No face.")
        return self.found

    def embedding(self, *_: Any) -> torch.Tensor:
        self.recognised += 1
        return torch.ones(512)


def report(pool: Pool, choice: FaceChoice = FaceChoice(), *, crops: bool = True, embeddings: bool = False):  # noqa: B008
    return report_faces(
        cast(FacePool, pool), cast(FacePack, None), reference(), choice, crops=crops, embeddings=embeddings
    )


def test_faces_are_numbered_from_the_left():
    pool = Pool(face(500, 50, 100), face(20, 40, 60), face(300, 200, 80))
    answer = report(pool, FaceChoice("index", index=2))
    assert [one.face.box[0] for one in answer.faces] == [20, 300, 500]
    assert (answer.chosen, answer.size) == (2, (WIDTH, HEIGHT))
    assert all(one.crop is not None and one.crop.size == (224, 224) and one.embedding is None for one in answer.faces)
    assert pool.recognised == 0
    assert any("small" in warning for warning in answer.faces[0].warnings)


def test_what_was_not_asked_for_is_not_computed():
    pool = Pool(face(500, 50, 100), face(20, 40, 60))
    answer = report(pool, crops=False, embeddings=True)
    assert all(one.crop is None and one.embedding is not None for one in answer.faces)
    assert pool.recognised == 2


def test_of_a_crowd_the_largest_and_the_chosen_one_are_looked_at():
    crowd = [face(number % 40 * 20, number // 40 * 20, 16 + number % 4 + number / 1000) for number in range(1000)]
    pool = Pool(*crowd)
    smallest = min(range(1000), key=lambda place: crowd[place].area)
    at = crowd[smallest].centre
    answer = report(pool, FaceChoice("point", point=(at[0] / WIDTH, at[1] / HEIGHT)), embeddings=True)
    detailed = [one for one in answer.faces if one.crop is not None]
    assert len(answer.faces) == 1000
    assert len(detailed) == pool.recognised == MAX_DETAILED + 1
    assert answer.chosen is not None and answer.faces[answer.chosen - 1].face is crowd[smallest]


def test_none_is_an_answer_and_a_missing_one_an_error():
    assert report(Pool()).faces == ()
    assert report(Pool()).chosen is None
    with pytest.raises(NoFaceError, match="The picture"):
        report(Pool(face(0, 0, 90)), FaceChoice("index", index=3))
