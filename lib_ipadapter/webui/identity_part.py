"""InstantID's part of a unit's drawing: its pose photo, the map of its keypoints, and its advice.

`events` asks for it where the unit runs InstantID.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..encoders.keypoints import Size
from ..session.advice import NO_ADVICE, Advice
from ..units.face_choice import FaceChoice, choice_for, parse_face_choices, parse_one_face
from ..units.fields import ADAPTER, FACE, IMAGES, INTENT
from ..units.identity_fields import FIT, KEYPOINTS, POSE, POSE_FACE
from ..units.images import ImageStore
from ..units.keypoint_text import parse_keypoints
from .advice_html import advice_html
from .attempts import attempt
from .keypoint_html import editor_html
from .keypoint_looks import NO_MAP, KeypointMap, MapLayout, map_of_points
from .looks import Looks
from .strip import message_line, pose_html

UNKNOWN_SIZE = (
    "The keypoints are pixels of the picture to be made, whose size this tab does not show: they cannot be drawn here."
)
Photo = tuple[str, str, FaceChoice | None]
"""A reference, what it is called on the page, and which of its faces counts; None where units share them out."""


class PartServices(Protocol):
    """Of `events.Services` what this part asks."""

    def store(self) -> ImageStore: ...

    def looks(self) -> Looks: ...

    def advice(self) -> Advice: ...

    def keypoint_map(
        self, photo: Photo, adapter: str, intent: str, layout: MapLayout, *, analyse: bool
    ) -> KeypointMap: ...


class MapFields(NamedTuple):
    """The components' values that say whose keypoints are drawn, and where in the picture to be made."""

    references: str
    face: str
    pose: str
    keypoints: str
    pose_face: str
    fit: str


class IdentityPart(NamedTuple):
    """HTML for the preview and below the adapter list, and how many photos are still to be analysed."""

    preview: str = ""
    advice: str = ""
    pending: int = 0


NO_PART = IdentityPart()


def identity_part(
    services: PartServices, given: MapFields, adapter: str, intent: str, size: Size | None, *, analyse: bool
) -> IdentityPart:
    """Draw it for a picture of `size`, where the page knows it; with `analyse` it may take its time to find a face."""
    advice, _ = attempt(services.advice, NO_ADVICE)
    fit, _ = attempt(lambda: FIT.parse(given.fit), FIT.default)
    layout = MapLayout(size, fit)
    drawn, pending = _given_map(given, layout), 0
    if not drawn:
        drawn, pending = _map(services, _photo_of_map(services, given), adapter, intent, layout, analyse=analyse)
    preview = _pose(services, given.pose) + drawn
    shape = f"{size[0]}x{size[1]}" if size is not None else ""
    return IdentityPart(
        f'<div class="ipadapter-identity" data-size="{shape}">{preview}</div>', advice_html(advice), pending
    )


def _given_map(given: MapFields, layout: MapLayout) -> str:
    """The map of points that the field holds, or what is wrong with them; nothing where it names a source."""

    def look() -> str:
        points = parse_keypoints(KEYPOINTS.parse(given.keypoints))
        if isinstance(points, str):
            return ""
        if layout.size is None and max(map(max, points)) > 1:
            return message_line(UNKNOWN_SIZE, error=False)
        return editor_html(map_of_points(points, layout), "Your own keypoints", given=True)

    html, problem = attempt(look, "")
    return html + (message_line(problem) if problem else "")


def _photo_of_map(services: PartServices, given: MapFields) -> Photo | None:
    """The photo whose face gives the keypoints; None where none does, or it is not there."""

    def look() -> Photo | None:
        source, poses, items = KEYPOINTS.parse(given.keypoints), POSE.parse(given.pose), IMAGES.parse(given.references)
        if poses and source in ("auto", "pose"):
            found = (poses[0], "the pose photo", parse_one_face(POSE_FACE.parse(given.pose_face)))
        elif items and source in ("auto", "reference"):
            found = (items[0], "reference 1", choice_for(parse_face_choices(FACE.parse(given.face)), 0))
        else:
            return None
        return found if not found[0].startswith("sha256:") or services.store().has(found[0]) else None

    return attempt(look, None)[0]


def _map(
    services: PartServices, photo: Photo | None, adapter: str, intent: str, layout: MapLayout, *, analyse: bool
) -> tuple[str, int]:
    """The map of that photo's face, and how many photos are still to be analysed for it."""
    if photo is None:
        return "", 0

    def look() -> KeypointMap:
        return services.keypoint_map(photo, ADAPTER.parse(adapter), INTENT.parse(intent), layout, analyse=analyse)

    found, problem = attempt(look, NO_MAP)
    html = editor_html(found, f"Keypoints of {photo[1]}", given=False) if found.source else ""
    html += message_line(found.note, error=False) if found.note else ""
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
