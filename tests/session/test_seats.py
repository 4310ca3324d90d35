"""Which unit takes which face of which pose photo."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.encoders.faces import Face
from lib_ipadapter.library.errors import BadImageError, BadUnitError, NoFaceError
from lib_ipadapter.session.seats import Seating
from lib_ipadapter.units.images import ImageStore
from lib_ipadapter.units.unit import Unit
from tests.encoders.face_pictures import DrawnFace


def encoded(colour: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), (colour, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


GROUP, OTHER = encoded(1), encoded(2)


def face(x: float, size: float) -> Face:
    drawn = DrawnFace(x, 100, size)
    return Face(drawn.box, 0.9, drawn.keypoints)  # type: ignore[arg-type]


LEFT, MIDDLE, RIGHT = face(60, 40), face(200, 50), face(330, 80)


class Faces:
    """Finds three faces in every photo, largest first, and remembers how many were wanted."""

    def __init__(self, *found: Face) -> None:
        self.found = found or (RIGHT, MIDDLE, LEFT)
        self.wanted: list[int] = []

    def faces(self, pack: Any, photo: Any, wanted: int) -> tuple[Face, ...]:
        self.wanted.append(wanted)
        return self.found


def unit(pose: str = GROUP, **fields: Any) -> Unit:
    return Unit(intent="instantid", images=("x",), pose=(pose,) if pose else (), **fields)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path, 10**7)


def taken(store: ImageStore, *units: Unit, faces: Any = None) -> list[Face | None]:
    seating = Seating(list(enumerate(units, 1)), store)
    seats = [seating.seat(number) for number in range(1, len(units) + 1)]
    return [seat.take(None, faces or Faces())[0] if seat is not None else None for seat in seats]  # type: ignore[arg-type]


def test_units_with_one_photo_take_its_faces_from_left_to_right(store: ImageStore) -> None:
    assert taken(store, unit(), unit(), unit()) == [LEFT, MIDDLE, RIGHT]
    assert taken(store, unit(), unit()) == [LEFT, MIDDLE]


def test_a_unit_alone_takes_the_largest(store: ImageStore) -> None:
    assert taken(store, unit()) == [RIGHT]
    assert taken(store, unit(), unit(OTHER)) == [RIGHT, RIGHT]


def test_a_photo_is_known_by_its_content(store: ImageStore) -> None:
    stored = store.put(base64.b64decode(GROUP))
    assert taken(store, unit(stored), unit(f"data:image/png;base64,{GROUP}"), unit(GROUP)) == [LEFT, MIDDLE, RIGHT]


def test_a_chosen_face_is_not_given_out_again(store: ImageStore) -> None:
    assert taken(store, unit(), unit(pose_face="1"), unit()) == [MIDDLE, LEFT, RIGHT]
    assert taken(store, unit(pose_face="largest"), unit(), unit()) == [RIGHT, LEFT, MIDDLE]
    assert taken(store, unit(pose_face="@0.5,0.5"), unit()) == [MIDDLE, LEFT]
    assert taken(store, unit(pose_face="1"), unit(pose_face="1"), unit()) == [LEFT, LEFT, MIDDLE]


def test_a_group_photo_in_one_unit_serves_those_that_ask_for_it(store: ImageStore) -> None:
    assert taken(store, unit(), unit("", keypoints="pose"), unit("", keypoints="pose")) == [LEFT, MIDDLE, RIGHT]
    assert taken(store, unit("", keypoints="pose"), unit()) == [LEFT, MIDDLE], "also of a later unit"
    assert taken(store, unit("", keypoints="pose"), unit(OTHER), unit(GROUP)) == [LEFT, MIDDLE, RIGHT], "the first"


def test_who_has_keypoints_of_its_own_takes_none(store: ImageStore) -> None:
    points = [[0.1, 0.1], [0.2, 0.1], [0.15, 0.2], [0.1, 0.3], [0.2, 0.3]]
    for fields in ({"keypoints": "reference"}, {"keypoints": "none"}, {"keypoints": points}):
        assert taken(store, unit(**fields), unit(), unit()) == [None, LEFT, MIDDLE]
    assert taken(store, unit(""), unit(), unit()) == [None, LEFT, MIDDLE], "auto does not inherit"


def test_as_many_are_looked_for_as_are_needed(store: ImageStore) -> None:
    for units, wanted in (
        ([unit()], 1), ([unit(pose_face="3")], 3), ([unit(), unit()], 2), ([unit(), unit(pose_face="3")], 3),
    ):  # fmt: skip
        faces = Faces()
        taken(store, *units, faces=faces)
        assert faces.wanted == [wanted] * len(units), "all of a photo's units search alike"


def test_more_units_than_faces_is_said_with_the_numbers(store: ImageStore) -> None:
    with pytest.raises(NoFaceError, match=r"^3 units take a face of the pose photo, and 2 faces were found in it"):
        taken(store, unit(), unit(), unit(), faces=Faces(RIGHT, LEFT))
    with pytest.raises(NoFaceError, match=r"2 units .* and one face was found"):
        taken(store, unit(pose_face="largest"), unit(), faces=Faces(LEFT))
    with pytest.raises(NoFaceError, match="Face 4 from the left is asked for, but 3 faces"):
        taken(store, unit(pose_face="4"), unit())


def test_a_number_and_a_count_name_the_face(store: ImageStore) -> None:
    seating = Seating([(2, unit(pose_face="largest")), (5, unit())], store)
    for number, named in ((2, (RIGHT, (400, 200), 3, 3)), (5, (LEFT, (400, 200), 1, 3))):
        seat = seating.seat(number)
        assert seat is not None
        assert seat.take(None, Faces()) == named  # type: ignore[arg-type]


def test_what_is_wrong_is_said_of_the_unit_whose_it_is(store: ImageStore) -> None:
    with pytest.raises(BadUnitError, match="neither the unit nor another InstantID unit"):
        taken(store, unit("", keypoints="pose"), unit(""))
    seating = Seating([(1, unit()), (2, unit("sha256:" + "0" * 64)), (3, unit())], store)
    with pytest.raises(BadImageError, match=r"^the pose photo: "):
        seating.seat(2)
    seats = [seating.seat(number) for number in (1, 3)]
    assert [seat.take(None, Faces())[0] for seat in seats if seat] == [LEFT, MIDDLE]  # type: ignore[arg-type]
    unused = Seating([(1, unit("sha256:" + "0" * 64, keypoints="reference"))], store)
    assert unused.seat(1) is None
