"""Finds the faces in a picture with any engine: at several sizes, with a border, in tiles, until there are some.

One size of detection misses what is larger than most of the picture and what is a few pixels small. `session` calls
`find_faces` for references and results, the page and the API for what they show; `face_choice` says which one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..library.errors import NoFaceError
from .face_onnx import MOST_FACES, OVERLAP
from .face_packages import import_cv2
from .faces import Face, FaceEngine, Picture, checked

FIRST = 640
"""The side that the detector was trained for and that everyone's embeddings come from: where it finds a face, its
keypoints are taken."""

GLANCE = 128
"""Looked at beside the first: a face that fills the picture is seen here alone, and the largest face must not be
overlooked for someone in the background (insightface 2.x merges the same two sides)."""

SMALLER = (512, 384, 256)
WITH_BORDER = (640, 320)
BORDER = 0.5
"""Of the longest edge, on each side of the picture: a crop that is tighter than a face has nothing around it."""

LARGER = 1280
TILE = 640
MOST_TILES = 36
TILE_OVERLAP = 0.25

LARGE = 0.4
"""Sides below the first are for faces that are large in the picture. Once there are others, what they find counts only
when its longer edge is at least this share of the picture's."""

INSIDE = 0.8
"""A face of which this share lies in a larger one that was found before is a part of that."""

SMALLEST_EDGE = 16
"""Pixels; the smallest face that the detector's finest anchors stand for."""

LONGEST_WORKED_ON = 2560
"""Larger pictures are shrunk to this for all that looks at the whole of them; tiles look at the pixels themselves."""

GREY = 127
"""Nothing, after the detector's normalisation."""


def find_faces(engine: FaceEngine, picture: Picture, name: str = "the picture", wanted: int = 1) -> tuple[Face, ...]:
    """The faces in an RGB picture, the largest first; looks harder until `wanted` are found.

    The order: the whole picture at 640 together with 128, at 512, 384 and 256, inside a grey border at 640 and 320, at
    1280, and in at most 36 tiles; every step is bounded whatever the picture's size. A face that is found twice keeps
    what was found first. Boxes may reach beyond the picture.

    Raises: NoFaceError, naming the picture, when there is none; what the engine raises.
    """
    picture = checked(picture)
    height, width = picture.shape[:2]
    if min(width, height) < SMALLEST_EDGE:
        raise NoFaceError(
            f"No face can be found in {name}: it is {width} x {height} pixels, and a face needs at least "
            f"{SMALLEST_EDGE} in each direction. Use a larger picture."
        )
    found = _Found(max(width, height))
    tried: list[str] = []
    for step in _steps(engine, picture):
        tried.append(step.words)
        found.add(step.look(), only_large=step.for_large_faces)
        if len(found.faces) >= wanted and not step.another_with_it:
            break
    if not found.faces:
        raise NoFaceError(
            f"No face was found in {name} ({width} x {height} pixels), looked for {', '.join(tried)}. Use a picture in "
            "which the face is upright, seen from the front and at least 40 pixels wide."
        )
    return tuple(sorted(found.faces, key=lambda face: -face.area))


@dataclass(frozen=True)
class _Step:
    words: str
    look: Callable[[], list[Face]]
    for_large_faces: bool = False
    another_with_it: bool = False


def _steps(engine: FaceEngine, picture: Picture) -> Iterator[_Step]:
    """Where to look, in words, and what looks there and answers in pixels of `picture`."""
    height, width = picture.shape[:2]
    longest = max(width, height)
    whole, scale = _shrunk(picture, LONGEST_WORKED_ON)

    def at(side: int) -> Callable[[], list[Face]]:
        return lambda: [face.moved(0, 0, scale) for face in engine.detect(whole, side)]

    yield _Step(f"at {FIRST}", at(FIRST), another_with_it=True)
    for side in (GLANCE, *SMALLER):
        yield _Step(f"at {side}", at(side), for_large_faces=True)
    for side in WITH_BORDER:
        yield _Step(f"in a border at {side}", partial(_in_a_border, engine, picture, side), for_large_faces=True)
    if longest > FIRST:
        yield _Step(f"at {LARGER}", at(LARGER))
    if longest > LARGER:
        tiles = _tiles(width, height)
        yield _Step(f"in {len(tiles)} tiles", partial(_in_tiles, engine, picture, tiles))


def _shrunk(picture: Picture, longest: int) -> tuple[Picture, float]:
    """The picture with edges of at most `longest`, averaged, and what its coordinates are to be multiplied by."""
    height, width = picture.shape[:2]
    scale = max(width, height) / longest
    if scale <= 1:
        return picture, 1.0
    cv2 = import_cv2()
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), scale


def _in_a_border(engine: FaceEngine, picture: Picture, side: int) -> list[Face]:
    """Detect with grey around the picture; a face whose centre is in the grey is none."""
    inner, scale = _shrunk(picture, LARGER)
    height, width = inner.shape[:2]
    border = round(BORDER * max(width, height))
    canvas = np.full((height + 2 * border, width + 2 * border, 3), GREY, np.uint8)
    canvas[border : border + height, border : border + width] = inner
    faces = [face.moved(-border, -border) for face in engine.detect(canvas, side)]
    inside = [face for face in faces if 0 <= face.centre[0] < width and 0 <= face.centre[1] < height]
    return [face.moved(0, 0, scale) for face in inside]


def _starts(length: int, edge: int) -> list[int]:
    """Where tiles of `edge` start along `length`: evenly, overlapping, the first and the last flush with the ends."""
    if length <= edge:
        return [0]
    count = math.ceil((length - edge) / (edge * (1 - TILE_OVERLAP))) + 1
    return [round(index * (length - edge) / (count - 1)) for index in range(count)]


def _tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """(x1, y1, x2, y2) of at most `MOST_TILES` tiles, as small as that allows, none smaller than `TILE`."""
    edge = TILE
    while len(_starts(width, edge)) * len(_starts(height, edge)) > MOST_TILES:
        edge = math.ceil(edge * 1.1)
    return [
        (x, y, min(width, x + edge), min(height, y + edge))
        for y in _starts(height, edge)
        for x in _starts(width, edge)
    ]


def _in_tiles(engine: FaceEngine, picture: Picture, tiles: Iterable[tuple[int, int, int, int]]) -> list[Face]:
    """Detect tile by tile. Faces that a tile cuts come last, so that the tile that has the whole face is believed."""
    height, width = picture.shape[:2]
    faces: list[tuple[bool, Face]] = []
    for left, top, right, bottom in tiles:
        tile = np.ascontiguousarray(picture[top:bottom, left:right])
        for face in engine.detect(tile, TILE):
            moved = face.moved(left, top)
            x1, y1, x2, y2 = moved.box
            cut_across = (x1 < left and left > 0) or (x2 > right and right < width)
            cut_down = (y1 < top and top > 0) or (y2 > bottom and bottom < height)
            faces.append((cut_across or cut_down, moved))
    faces.sort(key=lambda pair: (pair[0], -pair[1].score))
    return [face for _, face in faces]


class _Found:
    """The faces so far; one that was found before is not found again."""

    def __init__(self, longest: int) -> None:
        self.faces: list[Face] = []
        self._longest = longest
        self._boxes = np.zeros((MOST_FACES, 4))

    def add(self, faces: Iterable[Face], *, only_large: bool) -> None:
        """Take what is new. With `only_large`, and others there, only faces that are large in the picture."""
        least = LARGE * self._longest if only_large and self.faces else 0.0
        for face in faces:
            if len(self.faces) >= MOST_FACES:
                return
            if max(face.width, face.height) >= least and face.area > 0 and not self._known(face):
                self._boxes[len(self.faces)] = face.box
                self.faces.append(face)

    def _known(self, face: Face) -> bool:
        boxes, box = self._boxes[: len(self.faces)], np.asarray(face.box)
        shared = np.maximum(0, np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        same = shared > OVERLAP * (areas + face.area - shared)
        part = (areas >= face.area) & (shared > INSIDE * face.area)
        return bool((same | part).any())
