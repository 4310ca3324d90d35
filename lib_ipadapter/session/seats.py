"""Who of a job's InstantID units takes which face of which pose photo.

`session.ready` makes one `Seating` per job from all units that are switched on, before any of them is prepared, and
`session.keypoints` asks it for the face. Units with the same photo, by its content, share it: its faces are looked for
once, and those that nobody chose are given out from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..encoders.faces import Face
from ..library.errors import BadImageError, BadUnitError, NoFaceError
from ..library.face_packs import FacePack
from ..units.face_choice import FaceChoice, parse_one_face
from ..units.images import ImageStore, decode_reference, digest
from ..units.unit import Unit
from .faces import FacePool, chosen_face, left_to_right
from .failures import afresh
from .features import Reference

POSE_NAME = "the pose photo"


class Taken(NamedTuple):
    """A unit's face, its photo's (width, height), its number from the left, from 1, and how many faces there are."""

    face: Face
    size: tuple[int, int]
    number: int
    faces: int


@dataclass(frozen=True)
class Seat:
    """One unit's place in a pose photo.

    `choice` is its own, None for "auto"; `chosen` are the choices of the other units of the photo, `turn` counts the
    units before it that have none, and `units` all that share the photo.
    """

    photo: Reference
    choice: FaceChoice | None
    chosen: tuple[FaceChoice, ...] = ()
    turn: int = 0
    units: int = 1

    def take(self, pack: FacePack, faces: FacePool) -> Taken:
        """The unit's face. Raises: NoFaceError where there is none, or no such, or none left."""
        indices = [choice.index for choice in (*self.chosen, self.choice) if choice is not None]
        found = faces.faces(pack, self.photo, max(self.units, *indices, 1))
        size = self.photo.picture().size
        if self.choice is not None or self.units == 1:
            face = chosen_face(found, self.choice or FaceChoice(), size, self.photo.name)
        else:
            face = self._next(found, size)
        ordered = left_to_right(found)
        return Taken(face, size, ordered.index(face) + 1, len(ordered))

    def _next(self, found: Sequence[Face], size: tuple[int, int]) -> Face:
        # A choice that no face answers to stops its own unit.
        given = [choice for choice in self.chosen if choice.how != "index" or choice.index <= len(found)]
        taken = {chosen_face(found, choice, size, self.photo.name) for choice in given}
        free = [face for face in left_to_right(found) if face not in taken]
        if self.turn < len(free):
            return free[self.turn]
        there = "one face was" if len(found) == 1 else f"{len(found)} faces were"
        raise NoFaceError(
            f"{self.units} units take a face of {self.photo.name}, and {there} found in it, so none is left for this "
            "unit. Use a photo with a face for each, or give this unit a pose photo or keypoints of its own."
        )


class Seating:
    """The seats of a job's InstantID units, by their numbers."""

    def __init__(self, units: Sequence[tuple[int, Unit]], store: ImageStore) -> None:
        self._units = dict(units)
        self._poses = {number: _read(unit, store) for number, unit in units if unit.pose}

    def seat(self, number: int) -> Seat | None:
        """The unit's seat; None where its keypoints are not of a pose photo.

        Raises: BadUnitError where a pose photo is asked for and there is none; BadImageError.
        """
        photo = self._photo(number)
        if isinstance(photo, BadImageError):
            raise afresh(photo)
        if photo is None:
            if self._units[number].keypoints == "pose":
                raise BadUnitError(
                    "keypoints is pose, and neither the unit nor another InstantID unit that is on has a pose photo; "
                    "add one, or set keypoints to reference."
                )
            return None
        sharing: dict[int, FaceChoice | None] = {}
        for other, unit in self._units.items():
            its = self._photo(other)
            if isinstance(its, Reference) and its.digest == photo.digest:
                sharing[other] = parse_one_face(unit.pose_face)
        return Seat(
            photo,
            sharing[number],
            tuple(choice for other, choice in sharing.items() if choice is not None and other != number),
            sum(choice is None for other, choice in sharing.items() if other < number),
            len(sharing),
        )

    def _photo(self, number: int) -> Reference | BadImageError | None:
        """The pose photo that the unit's keypoints come from, or why it cannot be read."""
        asked = self._units[number].keypoints
        own = self._poses.get(number)
        if asked == "auto" or (asked == "pose" and own is not None):
            return own
        return next(iter(self._poses.values()), None) if asked == "pose" else None


def _read(unit: Unit, store: ImageStore) -> Reference | BadImageError:
    """A unit's pose photo. What is wrong with it is told when its unit's turn comes, under the unit's number."""
    try:
        data = decode_reference(unit.pose[0], store)
    except BadImageError as error:
        return BadImageError(f"{POSE_NAME}: {error}")
    return Reference(POSE_NAME, digest(data), data)
