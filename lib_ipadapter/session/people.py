"""Several people in one job: each InstantID unit's place on the canvas follows from its face, and nobody's from two.

`session.ready` asks which units have a place, and `session.passes` for every unit's mask, once per pass.

A face's region is its box, grown, and cut wherever a neighbour's grown box overlaps it: upright or level, whichever
parts the two faces better, half-way between them. So regions are rectangles without a common pixel, whichever unit
comes first. Feathered alike, they add up to one at most; feathered differently, their sum is divided where it is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from ..encoders.keypoints import Box, Size, is_in_sight
from ..library.errors import BadUnitError, KeypointsError
from ..units.regions import AUTO, FACE
from ..units.unit import Unit
from .keypoints import Frame, first_canvas, frame_of, lay, lay_box
from .models import Choice
from .preferences import INSTANTID
from .prepare import PreparedUnit
from .regions import Canvas, draw_box, draw_region, known

GROWTH = 1.8
"""Of a face's box about its centre, for hair, chin and neck: so grown, the box of a face that stands as ArcFace's
template takes in the square that FFHQ cuts to show hair and chin (NVlabs/ffhq-dataset, download_ffhq.py,
recreate_aligned_images: the larger of 4 times the eyes' distance and 3.6 times that from eyes to mouth)."""

SAME_PLACE = 0.4
"""Of two faces' mean width and height: with their centres nearer than that in both, no cut leaves each its own."""


def needs_face(unit: Unit, choice: Choice) -> bool:
    """Whether it must be known where a unit's face stands. Raises: BadUnitError where that cannot be."""
    if unit.region == FACE and choice.spec.kind != INSTANTID:
        raise BadUnitError(
            f"region is face, and {choice.name} is no InstantID adapter, so the face may come to stand anywhere: "
            "choose a part of the picture, a box or everywhere."
        )
    if unit.region == FACE and unit.keypoints == "none":
        raise BadUnitError(
            "region is face and keypoints is none, so it is not known where the face is to stand: give keypoints, or "
            "choose a part of the picture, a box or everywhere."
        )
    return choice.net is not None or unit.region == FACE


def require_a_face_in_sight(p: Any, units: Sequence[PreparedUnit]) -> None:
    """See that where only a part of the picture is sampled, IdentityNet has somebody to act on.

    Raises: KeypointsError where every InstantID unit's face lies outside of that part.
    """
    people = [unit for unit in units if unit.identity is not None]
    if people and not _in_sight(people, frame_of(p), first_canvas(p)):
        raise KeypointsError(
            "Only the masked part is sampled, and no keypoint of a face lies in it: mask the face, or raise the "
            "padding of the masked area, or set the unit's keypoints to none."
        )


def told_regions(p: Any, units: Sequence[PreparedUnit]) -> dict[int, str]:
    """The regions that follow from faces, by the units' numbers, as "x,y,width,height" of the first pass's canvas.

    Raises: KeypointsError where two units' faces stand at the same place.
    """
    if not _placed(units):
        return {}
    width, height = first_canvas(p)
    told: dict[int, str] = {}
    for number, box in face_regions(units, frame_of(p), (width, height)).items():
        left, right = (min(max(side / width, 0.0), 1.0) for side in (box[0], box[2]))
        top, bottom = (min(max(side / height, 0.0), 1.0) for side in (box[1], box[3]))
        told[number] = ",".join(f"{round(part, 3):g}" for part in (left, top, right - left, bottom - top))
    return told


def draw_masks(
    p: Any, everybody: Sequence[PreparedUnit], units: Sequence[PreparedUnit], canvas: Canvas | None
) -> dict[int, Tensor]:
    """The regions of those of `units` that have one, by their numbers, as masks (H, W) of the pass's canvas.

    `everybody` are the job's units, also those that are off in this pass: they keep their places. A person whose face
    is not in the part of the picture that is sampled has a region of nothing.

    Raises: UnsupportedHostStateError where the canvas, or the part of the picture that it shows, is not known.
    """
    drawn = [(unit.number, unit.region) for unit in units if unit.region is not None]
    placed = _placed(everybody) & {unit.number for unit in units}
    people = [unit for unit in units if unit.identity is not None]
    if not drawn and not placed and not people:
        return {}
    frame = frame_of(p)
    masks = {number: draw_region(region, canvas, frame.crop) for number, region in drawn}
    if placed:
        faces = _draw_faces(everybody, frame, known(canvas))
        masks |= {number: mask for number, mask in faces.items() if number in placed}
    if frame.crop is not None and people:
        height, width = known(canvas)
        hidden = {unit.number for unit in people} - _in_sight(people, frame, (width, height))
        masks |= {number: torch.zeros(height, width) for number in hidden}
    return masks


def face_regions(units: Sequence[PreparedUnit], frame: Frame, canvas: Size) -> dict[int, Box]:
    """The regions that follow from faces, in pixels of a canvas, by the units' numbers; no two have a common pixel.

    Raises: KeypointsError where two units' faces stand at the same place.
    """
    faces = {unit.number: lay_box(unit.face, frame, canvas, unit.unit.fit) for unit in units if unit.face is not None}
    grown = {number: _grown(box) for number, box in faces.items()}
    regions = {number: grown[number] for number in _placed(units)}
    for number, other in permutations(faces, 2):
        if number in regions and _overlap(grown[number], grown[other]):
            regions[number] = _cut(regions[number], faces[number], faces[other], (number, other))
    return regions


def _in_sight(people: Sequence[PreparedUnit], frame: Frame, canvas: Size) -> set[int]:
    """The numbers of those whose face has a keypoint on the canvas."""
    return {
        unit.number
        for unit in people
        if unit.face is not None and is_in_sight(lay(unit.face, frame, canvas, unit.unit.fit), canvas)
    }


def _placed(units: Sequence[PreparedUnit]) -> set[int]:
    """The numbers of the units whose region follows from their face."""
    people = [unit for unit in units if unit.face is not None]
    words = (AUTO, FACE) if len(people) > 1 else (FACE,)
    return {unit.number for unit in people if unit.unit.region in words}


def _draw_faces(units: Sequence[PreparedUnit], frame: Frame, canvas: Canvas) -> dict[int, Tensor]:
    size = (canvas[1], canvas[0])
    pixels = min(frame.size) * frame.pixels(size)
    feathers = {unit.number: unit.unit.feather for unit in units}
    # In an order that is not the units', for sums that are the same whichever comes first.
    regions = sorted(face_regions(units, frame, size).items(), key=lambda item: item[1])
    masks = {number: draw_box(box, canvas, pixels * feathers[number]) for number, box in regions}
    if len(masks) > 1:
        total = torch.stack(list(masks.values())).sum(dim=0).clamp_(min=1.0)
        masks = {number: mask / total for number, mask in masks.items()}
    return masks


def _grown(box: Box) -> Box:
    (left, top, right, bottom), more = box, (GROWTH - 1) / 2
    across, down = more * (right - left), more * (bottom - top)
    return left - across, top - down, right + across, bottom + down


def _overlap(one: Box, other: Box) -> bool:
    return all(one[axis] < other[2 + axis] and other[axis] < one[2 + axis] for axis in (0, 1))


def _cut(region: Box, face: Box, other: Box, numbers: tuple[int, int]) -> Box:
    """What is left of a face's region beside another face."""
    axis = max((0, 1), key=lambda axis: abs(_distance(face, other, axis)))
    distance = _distance(face, other, axis)
    if abs(distance) < SAME_PLACE:
        first, second = sorted(numbers)
        raise KeypointsError(
            f"Units {first} and {second} put their faces at the same place, {_shown(face)} and {_shown(other)} of the "
            "canvas, so each cannot have a part of the picture of its own. Give them different faces of a pose photo "
            "or keypoints apart; or, to blend both people into one face, set the regions of both to everywhere."
        )
    cut = list(region)
    if distance > 0:
        cut[2 + axis] = min(region[2 + axis], _between(face, other, axis))
    else:
        cut[axis] = max(region[axis], _between(other, face, axis))
    left, top, right, bottom = cut
    return left, top, right, bottom


def _distance(face: Box, other: Box, axis: int) -> float:
    """From a face's centre to another's along an axis, over their mean length on it."""
    apart = (other[axis] + other[2 + axis] - face[axis] - face[2 + axis]) / 2
    return apart / ((face[2 + axis] - face[axis] + other[2 + axis] - other[axis]) / 2)


def _between(before: Box, after: Box, axis: int) -> float:
    """Half-way between two faces; where their boxes overlap, in proportion to their lengths, as half-way could lie
    beyond the centre of one that is much smaller.
    """
    if before[2 + axis] <= after[axis]:
        return (before[2 + axis] + after[axis]) / 2
    lengths = before[2 + axis] - before[axis], after[2 + axis] - after[axis]
    centres = (before[axis] + before[2 + axis]) / 2, (after[axis] + after[2 + axis]) / 2
    return centres[0] + (centres[1] - centres[0]) * lengths[0] / sum(lengths)


def _shown(box: Box) -> str:
    left, top, right, bottom = (round(side) for side in box)
    return f"{left},{top} to {right},{bottom}"
