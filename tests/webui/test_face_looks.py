"""What the page keeps of analysed references: what is known is shown at once, the rest takes its turn."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from PIL import Image

from lib_ipadapter.encoders.faces import face_of
from lib_ipadapter.library.errors import FaceModelError, NoFaceError
from lib_ipadapter.library.face_packs import FacePack
from lib_ipadapter.session.faces import FaceReading, chosen_face
from lib_ipadapter.units.face_choice import FaceChoice
from lib_ipadapter.units.images import ImageStore
from lib_ipadapter.webui import face_looks as module
from lib_ipadapter.webui.face_looks import AskedPicture, FaceLooks

FIRST, SECOND = FaceChoice("index", index=1), FaceChoice("index", index=2)
BROKEN = -1
"""The colour of a picture that is none."""
POINTS = ((10, 10), (20, 10), (15, 20), (11, 30), (19, 30))


class Pack:
    fingerprint = "f" * 64


class Pool:
    """Finds two faces in every picture but the black ones; counts what it is asked, and takes its time: `seconds` a
    picture, `opening` for its engine.
    """

    def __init__(self) -> None:
        self.searched, self.read_, self.opened = [], [], 0
        self.seconds, self.opening = 0.0, 0.0
        self.broken = False

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        self.opened += 1
        self.is_open = False
        yield self

    def faces(self, pack: Any, reference: Any, wanted: int = 1):
        if self.broken:
            raise FaceModelError("The detector is damaged; download it again.")
        self.searched.append(reference.name)
        time.sleep(self.seconds + (0 if self.is_open else self.opening))
        self.is_open = True
        if not any(extreme[1] for extreme in reference.picture().getextrema()):
            raise NoFaceError(f"No face was found in {reference.name}.")
        return (face_of((40, 0, 90, 40), 0.7, POINTS), face_of((0, 0, 30, 40), 0.9, POINTS))

    def read(self, pack: Any, reference: Any, choice: FaceChoice) -> FaceReading:
        self.read_.append(str(choice))
        faces = self.faces(pack, reference)
        self.searched.pop()
        face = chosen_face(faces, choice, (100, 40), reference.name)
        warnings = (f"{reference.name}: It is small.",)
        return FaceReading(face, faces, torch.ones(512), Image.new("RGB", (224, 224)), warnings)


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def look(pool: Pool, tmp_path):
    """`look(*asked, analyse=...)` on one `FaceLooks`."""
    looks, store = FaceLooks(pool), ImageStore(tmp_path / "store", 10**7)

    def look(*asked: AskedPicture, analyse: bool = True):
        return looks.pictures(cast(FacePack, Pack()), asked, store, analyse=analyse)

    return look


def asked(colour: int, name: str = "picture 1", choice: FaceChoice = FaceChoice()) -> AskedPicture:  # noqa: B008
    if colour == BROKEN:
        return AskedPicture("data:image/png;base64,AAAA", name, choice)
    buffer = io.BytesIO()
    Image.new("RGB", (100, 40), (colour, 0, 0)).save(buffer, "PNG")
    return AskedPicture("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), name, choice)


def test_what_is_new_is_pending_until_somebody_may_take_the_time(look, pool):
    (before,) = look(asked(9), analyse=False)
    assert before.pending and before.found is None and pool.opened == 0
    (seen,) = look(asked(9))
    assert not seen.pending
    assert [face.box[0] for face in seen.found.faces] == [0, 40]
    assert (seen.chosen, seen.read.warnings) == (1, ("It is small.",))
    (again,) = look(asked(9, "picture 5"), analyse=False)
    assert not again.pending and again.name == "picture 5"
    assert (pool.opened, pool.searched) == (1, ["picture 1"])


def test_another_choice_is_marked_at_once_and_read_later(look, pool):
    look(asked(9, choice=FIRST))
    (at_once,) = look(asked(9, choice=FaceChoice("point", point=(0.9, 0.5))), analyse=False)
    assert at_once.pending and at_once.found is None  # an index may have looked harder for faces
    look(asked(9))
    (at_once,) = look(asked(9, choice=FaceChoice("point", point=(0.1, 0.5))), analyse=False)
    assert at_once.pending and at_once.chosen == 0 and at_once.read is None
    look(asked(9, choice=FaceChoice("point", point=(0.1, 0.5))))
    assert pool.read_ == ["1", "largest", "@0.1,0.5"]
    assert len(pool.searched) == 2


def test_a_drawing_takes_only_so_long_and_gets_on(look, pool, monkeypatch):
    monkeypatch.setattr(module, "DRAWING_SECONDS", 0.05)
    pool.seconds = 0.06
    pictures = [asked(colour, f"picture {colour}") for colour in (1, 2, 3, 4, 5)]
    left = [sum(picture.pending for picture in look(*pictures)) for _ in range(3)]
    assert left == [3, 1, 0]
    assert pool.opened == 3


@pytest.mark.parametrize("first", [9, BROKEN], ids=["opens the engine", "is none and opens nothing"])
def test_the_seconds_in_which_the_engine_opens_are_not_a_drawings(look, pool, monkeypatch, first):
    monkeypatch.setattr(module, "DRAWING_SECONDS", 0.2)
    pool.opening = 0.5
    pictures = [asked(first, "picture 1"), *(asked(colour, f"picture {colour}") for colour in (2, 3, 4))]
    assert not any(picture.pending for picture in look(*pictures))
    assert pool.opened == 1


def test_a_picture_without_a_face_is_searched_once_and_called_by_its_present_name(look, pool):
    (seen,) = look(asked(0, "picture 2"))
    assert seen.problem == "No face was found in picture 2." and seen.found.source
    (moved,) = look(asked(0, "picture 1"), analyse=False)
    assert moved.problem == "No face was found in picture 1." and not moved.pending
    assert pool.searched == ["picture 2"]


def test_an_unreadable_picture_is_its_own_problem_and_a_broken_model_everybodys(look, pool):
    bad, good = look(asked(BROKEN, "picture 1", FIRST), asked(9, "picture 2", SECOND))
    assert "picture 1" in bad.problem and not bad.pending
    assert good.chosen == 1
    pool.broken = True
    with pytest.raises(FaceModelError):
        look(asked(77))
