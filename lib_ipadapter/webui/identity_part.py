"""InstantID's part of a unit's drawing: its pose photo, the map of its keypoints, and its advice.

`events` asks for it where the unit runs InstantID.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..session.advice import NO_ADVICE, Advice
from ..units.face_choice import FaceChoice, choice_for, parse_face_choices
from ..units.fields import ADAPTER, FACE, IMAGES, INTENT
from ..units.identity_fields import KEYPOINTS, POSE, POSE_FACE
from ..units.images import ImageStore
from .advice_html import advice_html
from .attempts import attempt
from .keypoint_looks import NO_MAP, KeypointMap
from .looks import Looks
from .strip import map_html, message_line, pose_html

Photo = tuple[str, str, FaceChoice]
"""A reference, what it is called on the page, and which of its faces counts."""


class PartServices(Protocol):
    """Of `events.Services` what this part asks."""

    def store(self) -> ImageStore: ...

    def looks(self) -> Looks: ...

    def advice(self) -> Advice: ...

    def keypoint_map(self, photo: Photo, adapter: str, intent: str, *, analyse: bool) -> KeypointMap: ...


class MapFields(NamedTuple):
    """The components' values that say whose keypoints are drawn."""

    references: str
    face: str
    pose: str
    keypoints: str
    pose_face: str


class IdentityPart(NamedTuple):
    """HTML for the preview and below the adapter list, and how many photos are still to be analysed."""

    preview: str = ""
    advice: str = ""
    pending: int = 0


NO_PART = IdentityPart()


def identity_part(
    services: PartServices, given: MapFields, adapter: str, intent: str, *, analyse: bool
) -> IdentityPart:
    """Draw it; with `analyse` it may take its time to look for a face."""
    advice, _ = attempt(services.advice, NO_ADVICE)
    drawn, pending = _map(services, _photo_of_map(services, given), adapter, intent, analyse=analyse)
    return IdentityPart(_pose(services, given.pose) + drawn, advice_html(advice), pending)


def _photo_of_map(services: PartServices, given: MapFields) -> Photo | None:
    """The photo whose face gives the keypoints; None where none does, or it is not there."""

    def look() -> Photo | None:
        source, poses, items = KEYPOINTS.parse(given.keypoints), POSE.parse(given.pose), IMAGES.parse(given.references)
        if poses and source in ("auto", "pose"):
            found = (poses[0], "the pose photo", parse_face_choices(POSE_FACE.parse(given.pose_face))[0])
        elif items and source in ("auto", "reference"):
            found = (items[0], "reference 1", choice_for(parse_face_choices(FACE.parse(given.face)), 0))
        else:
            return None
        return found if not found[0].startswith("sha256:") or services.store().has(found[0]) else None

    return attempt(look, None)[0]


def _map(
    services: PartServices, photo: Photo | None, adapter: str, intent: str, *, analyse: bool
) -> tuple[str, int]:
    """The map of that photo's face, and how many photos are still to be analysed for it."""
    if photo is None:
        return "", 0

    def look() -> KeypointMap:
        return services.keypoint_map(photo, ADAPTER.parse(adapter), INTENT.parse(intent), analyse=analyse)

    found, problem = attempt(look, NO_MAP)
    html = map_html(found.source, photo[1]) if found.source else ""
    return html + (message_line(problem or found.problem) if problem or found.problem else ""), found.pending


def _pose(services: PartServices, pose: str) -> str:
    """The pose photo, small; nothing where there is none."""

    def look() -> str:
        chosen = POSE.parse(pose)
        if not chosen:
            return ""
        return pose_html(services.looks().thumbnail(chosen[0], POSE.label, services.store()))

    html, problem = attempt(look, "")
    return html + (message_line(problem) if problem else "")
