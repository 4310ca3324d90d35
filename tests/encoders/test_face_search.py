"""The search: every step finds what it is for, coordinates survive it, and nothing is unbounded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lib_ipadapter.encoders.face_onnx import OnnxFaceEngine
from lib_ipadapter.encoders.face_search import MOST_FACES, MOST_TILES, TILE, _tiles, find_faces
from lib_ipadapter.encoders.faces import Face, OnnxModel, Picture
from lib_ipadapter.library.errors import NoFaceError

from .face_models import write_face_pack
from .face_pictures import DrawnFace, blank, face_picture


class Watched:
    """An engine that remembers what it was asked."""

    name = "watched"

    def __init__(self, engine: OnnxFaceEngine) -> None:
        self.engine = engine
        self.asked: list[tuple[int, int, int]] = []

    def detect(self, picture: Picture, side: int) -> list[Face]:
        self.asked.append((picture.shape[1], picture.shape[0], side))
        return self.engine.detect(picture, side)

    def embed(self, picture: Picture, face: Face) -> NDArray[np.float32]:
        return self.engine.embed(picture, face)


@pytest.fixture(scope="module")
def onnx_engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxFaceEngine:
    detector, recogniser = write_face_pack(tmp_path_factory.mktemp("pack"))
    return OnnxFaceEngine(OnnxModel(detector.name, detector), OnnxModel(recogniser.name, recogniser), cuda=False)


@pytest.fixture
def engine(onnx_engine: OnnxFaceEngine) -> Iterator[Watched]:
    yield Watched(onnx_engine)


def assert_is(face: Face, drawn: DrawnFace, tolerance: float = 0.02) -> None:
    """The face lies where it was drawn, to a share of its size."""
    assert np.abs(np.subtract(face.box, drawn.box)).max() <= tolerance * drawn.size
    assert np.abs(np.subtract(face.keypoints, drawn.keypoints)).max() <= tolerance * drawn.size


def test_an_ordinary_portrait_takes_two_looks(engine: Watched) -> None:
    drawn = DrawnFace(310, 220, 180, tilt=10)
    (face,) = find_faces(engine, face_picture(600, 700, [drawn]))
    assert_is(face, drawn)
    assert [side for _, _, side in engine.asked] == [640, 128]


def test_where_640_finds_a_face_its_keypoints_are_taken(engine: Watched) -> None:
    picture = face_picture(640, 640, [DrawnFace(320, 320, 300)])
    both = engine.engine.detect(picture, 640), engine.engine.detect(picture, 128)
    assert both[0][0].keypoints != both[1][0].keypoints
    assert find_faces(engine, picture) == tuple(both[0])


def test_the_large_face_is_not_overlooked_for_a_small_one(engine: Watched) -> None:
    large, small = DrawnFace(500, 560, 800), DrawnFace(940, 60, 70)
    picture = face_picture(1000, 1000, [large, small])
    assert len(engine.engine.detect(picture, 640)) == 1
    found = find_faces(engine, picture)
    assert_is(found[0], large)
    assert_is(found[1], small)
    assert len(found) == 2


@pytest.mark.parametrize("share", [0.72, 0.8, 0.9, 0.99])
def test_a_face_that_fills_the_picture_is_found(engine: Watched, share: float) -> None:
    drawn = DrawnFace(450, 450, 900 * share)
    (face,) = find_faces(engine, face_picture(900, 900, [drawn]))
    assert_is(face, drawn)
    assert engine.asked[-1][2] < 640


@pytest.mark.parametrize("size", [(400, 400), (400, 300), (2700, 1500)])
def test_a_crop_tighter_than_the_face_is_found_in_a_border(engine: Watched, size: tuple[int, int]) -> None:
    width, height = size
    drawn = DrawnFace(width * 0.47, height * 0.52, max(size) * 1.2, tilt=-8)
    (face,) = find_faces(engine, face_picture(width, height, [drawn]))
    assert_is(face, drawn)
    assert engine.asked[-1][:2] != engine.asked[0][:2], "the last look was at another canvas"


def test_a_face_drawn_by_the_border_alone_is_none(onnx_engine: OnnxFaceEngine) -> None:
    class InTheBorder(Watched):
        def detect(self, picture: Picture, side: int) -> list[Face]:
            place = Face((0, 0, 10, 10), 0.9, ((2, 2), (8, 2), (5, 5), (2, 8), (8, 8)))
            return [place] if picture.shape[0] > 400 else []

    with pytest.raises(NoFaceError):
        find_faces(InTheBorder(onnx_engine), blank(400, 400))


def test_small_faces_in_a_large_picture_are_found_at_1280(engine: Watched) -> None:
    drawn = DrawnFace(1500, 300, 45, tilt=5)
    (face,) = find_faces(engine, face_picture(1800, 1200, [drawn]))
    assert_is(face, drawn, 0.04)
    assert engine.asked[-1][2] == 1280


@pytest.mark.parametrize("place", [(2000, 1300), (610, 500), (2385, 1585), (20, 20)])
def test_smaller_ones_are_found_in_tiles_once(engine: Watched, place: tuple[int, int]) -> None:
    drawn = DrawnFace(*place, 24)
    (face,) = find_faces(engine, face_picture(2400, 1600, [drawn]))
    assert_is(face, drawn, 0.04)
    assert len(engine.asked) > 10


def crowd(columns: int, rows: int, step: float, size: float) -> list[DrawnFace]:
    """Faces in uneven rows: even ones would add up to faces of another size when they are shrunk."""
    rng = np.random.default_rng(8)
    places = [((x + 0.5) * step, (y + 0.5) * step) for y in range(rows) for x in range(columns)]
    jitter = rng.uniform(-1, 1, (len(places), 2)) * (step - size) / 2.2
    return [DrawnFace(x + dx, y + dy, size, i) for i, ((x, y), (dx, dy)) in enumerate(zip(places, jitter, strict=True))]


def assert_all_there(found: tuple[Face, ...], drawn: list[DrawnFace]) -> None:
    assert len(found) == len(drawn)
    centres = np.asarray([face.centre for face in found])
    for face in drawn:
        assert np.hypot(*(centres - (face.x, face.y)).T).min() < 1.5


def test_a_thousand_faces(engine: Watched) -> None:
    drawn = crowd(32, 32, 40, 26)
    assert_all_there(find_faces(engine, face_picture(1280, 1280, drawn)), drawn)


def test_a_crowd_in_tiles_is_counted_once_each(engine: Watched) -> None:
    drawn = crowd(16, 10, 150, 24)
    assert_all_there(find_faces(engine, face_picture(2400, 1500, drawn)), drawn)
    assert len(engine.asked) > 10


def test_it_looks_harder_when_more_are_wanted(engine: Watched) -> None:
    large, small = DrawnFace(600, 500, 300), DrawnFace(1450, 200, 40)
    picture = face_picture(1600, 1000, [large, small])
    assert len(find_faces(engine, picture)) == 1
    found = find_faces(engine, picture, wanted=2)
    assert_is(found[0], large)
    assert_is(found[1], small, 0.05)


def test_a_picture_turned_on_its_side_has_no_face(engine: Watched) -> None:
    """As with a real detector: orientation from the camera has to be applied before."""
    turned = np.rot90(face_picture(500, 500, [DrawnFace(250, 250, 200)])).copy()
    with pytest.raises(NoFaceError):
        find_faces(engine, turned)


def test_no_face_is_a_sentence_with_the_picture_and_what_was_tried(engine: Watched) -> None:
    with pytest.raises(NoFaceError) as caught:
        find_faces(engine, blank(2000, 1500, seed=1), "photo 3 (beach.png)")
    message = str(caught.value)
    assert "photo 3 (beach.png) (2000 x 1500 pixels)" in message
    for step in ("at 640", "at 128", "at 512", "at 384", "at 256", "in a border at 640", "at 1280", "in 12 tiles"):
        assert step in message


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 900), (900, 1)])
def test_a_picture_without_room_for_a_face_says_so(engine: Watched, width: int, height: int) -> None:
    with pytest.raises(NoFaceError, match=f"{width} x {height} pixels"):
        find_faces(engine, blank(width, height))
    assert engine.asked == []


@pytest.mark.parametrize(("width", "height"), [(60000, 800), (16, 33000)])
def test_huge_and_thin_pictures_are_bounded(engine: Watched, width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    with pytest.raises(NoFaceError):
        find_faces(engine, picture)
    assert len(engine.asked) <= 8 + MOST_TILES
    assert max(wide * tall for wide, tall, _ in engine.asked) <= 3000 * 3000


def test_a_face_in_a_hundred_megapixels_is_found(engine: Watched) -> None:
    """And what is looked at stays small."""
    drawn = DrawnFace(11000, 1200, 120)
    (face,) = find_faces(engine, face_picture(40000, 2500, [drawn]))
    assert_is(face, drawn, 0.05)
    assert len(engine.asked) <= 8 + MOST_TILES
    assert max(wide * tall for wide, tall, _ in engine.asked) <= 3000 * 3000


@pytest.mark.parametrize(
    ("width", "height"), [(1281, 700), (4000, 3000), (10000, 10000), (100000, 20), (20, 100000), (1300, 90000)]
)
def test_tiles_cover_everything_and_overlap(width: int, height: int) -> None:
    tiles = _tiles(width, height)
    assert 1 < len(tiles) <= MOST_TILES
    for first, length, low, high in ((0, width, 0, 2), (1, height, 1, 3)):
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= 0.24 * TILE, first
    assert len({tile[2] - tile[0] for tile in tiles}) == 1


def test_a_detector_that_fires_everywhere_is_bounded(tmp_path: Path) -> None:
    class Everywhere:
        name = "everywhere"

        def detect(self, picture: Picture, side: int) -> list[Face]:
            rng = np.random.default_rng(len(picture))
            faces = []
            for x, y in rng.uniform(0, 1, (400, 2)) * (picture.shape[1], picture.shape[0]):
                faces.append(Face((x, y, x + 5, y + 5), 0.6, ((x, y), (x + 4, y), (x + 2, y + 2), (x, y + 4), (x, y))))
            return faces

        def embed(self, picture: Picture, face: Face) -> NDArray[np.float32]:
            raise NotImplementedError

    assert len(find_faces(Everywhere(), blank(4000, 4000), wanted=10**9)) == MOST_FACES
