"""Drawn faces that the detector of `face_models` finds: pictures for tests, the demo and the stand-in host.

A drawn face is a disc whose red rises from left to right and whose green rises from top to bottom, so that every part
of it says where in the face it is, at any size and tilt. Blue is the person: a pattern made from a seed, with eyes,
nose and mouth where ArcFace's template has them, and a texture that is sharp from 100 pixels on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]

FEATURES = ((0.34192, 0.46157), (0.65653, 0.45983), (0.50023, 0.64051), (0.37098, 0.82469), (0.63152, 0.82325))
"""Eyes, nose and mouth corners in a face of width 1: the aligned crop is the square around the disc."""

GREY = (118, 121, 116)


@dataclass(frozen=True)
class DrawnFace:
    """Where to draw one: centre and diameter in pixels, the person's number, and the tilt in degrees, clockwise."""

    x: float
    y: float
    size: float
    person: int = 0
    tilt: float = 0.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        half = self.size / 2
        return self.x - half, self.y - half, self.x + half, self.y + half

    @property
    def keypoints(self) -> tuple[tuple[float, float], ...]:
        cos, sin = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        offsets = [((u - 0.5) * self.size, (v - 0.5) * self.size) for u, v in FEATURES]
        return tuple((self.x + dx * cos - dy * sin, self.y + dx * sin + dy * cos) for dx, dy in offsets)


def blank(width: int, height: int, seed: int | None = None) -> Picture:
    """A grey picture, or one of noise in which no face is found."""
    if seed is None:
        return np.full((height, width, 3), GREY, np.uint8)
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw_face(picture: Picture, face: DrawnFace) -> Picture:
    """A copy of the picture with the face in it; what lies beyond the edges is cut."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = face.box
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = min(width, math.ceil(x2)), min(height, math.ceil(y2))
    if left >= right or top >= bottom:
        return picture
    rows, columns = np.mgrid[top:bottom, left:right] + 0.5
    cos, sin = math.cos(math.radians(face.tilt)), math.sin(math.radians(face.tilt))
    dx, dy = (columns - face.x) / face.size, (rows - face.y) / face.size
    u, v = dx * cos + dy * sin + 0.5, dy * cos - dx * sin + 0.5
    pixels = np.stack([u * 255, v * 255, _person(face.person, u, v)], axis=-1)
    inside = (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25
    region = picture[top:bottom, left:right]
    region[inside] = np.clip(np.rint(pixels[inside]), 0, 255).astype(np.uint8)
    return picture


def face_picture(width: int, height: int, faces: Sequence[DrawnFace], seed: int | None = None) -> Picture:
    """A picture with the faces drawn one after the other."""
    picture = blank(width, height, seed)
    for face in faces:
        picture = draw_face(picture, face)
    return picture


def portrait(person: int = 0, side: int = 512, size: float = 0.45, tilt: float = 0.0) -> Image.Image:
    """One person's face in the middle of a square PIL picture; `size` is its share of the width."""
    return Image.fromarray(face_picture(side, side, [DrawnFace(side / 2, side / 2, side * size, person, tilt)]))


def _person(person: int, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The blue of a face, 40 to 255: a few waves that differ from person to person, darker at the features."""
    rng = np.random.default_rng([person, 77])
    pattern = np.zeros_like(u)
    for _ in range(6):
        across, down = rng.integers(-3, 4, 2)
        pattern += np.sin(2 * np.pi * (across * u + down * v + rng.random())) * rng.uniform(0.5, 1.0)
    blue = 160 + 24 * pattern + 46 * np.sin(52 * np.pi * u) * np.sin(52 * np.pi * v)  # fine enough to look sharp
    for x, y in FEATURES:
        blue -= 110 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 0.002)
    return np.clip(blue, 40, 255)
