"""POST /ipadapter/v1/faces: a picture in; its faces, their keypoints and aligned crops out. `api` adds the route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from fastapi import Body, HTTPException

from ..library.errors import BadUnitError
from ..session.face_report import FaceReport, ReportedFace, report_faces
from ..session.failures import as_named
from ..session.features import Reference
from ..session.models import FACE_PACKS
from ..units.face_choice import FaceChoice, parse_face_choices
from ..units.field_spec import did_you_mean, shown
from ..units.fields import FACE
from ..units.images import decode_reference, digest
from .looks import png_data_uri
from .process import face_pool, image_store, services

NAME = "The picture"
KEYS = ("image", "face", "pack", "embedding", "crops")


class FaceQuery(NamedTuple):
    """What a program asks, checked."""

    image: str
    choice: FaceChoice
    pack: str
    embedding: bool
    crops: bool


def faces(body: Any = Body(None)) -> dict[str, Any]:  # noqa: B008 - FastAPI's form
    """The faces of one picture, left to right, and which of them counts.

    The body: `image` (base64, data URI, or the sha256 id of a stored picture), `face` ("largest", "best", a number from
    the left, "@x,y"), `pack` ("buffalo_l" or "antelopev2"), `embedding` (false) and `crops` (true).
    """
    try:
        query = read_query(body)
        pack = services().models.face_pack(query.pack)
        data = decode_reference(query.image, image_store())
        reference = Reference(NAME, digest(data), data)
        with face_pool() as pool:
            report = report_faces(
                pool, pack, reference, query.choice, crops=query.crops, embeddings=query.embedding
            )
        return {"pack": pack.name, "note": pack.note, **_answer(report)}
    except Exception as error:
        named = as_named(error, "Looking for faces")
        raise HTTPException(named.status_code, str(named)) from None


def read_query(body: object) -> FaceQuery:
    """Raises: BadUnitError naming the key, what was sent and what is accepted."""
    if not isinstance(body, Mapping):
        raise BadUnitError(f"The body is {shown(body)}; it must be a JSON object with the keys {', '.join(KEYS)}.")
    given = cast("Mapping[str, object]", body)
    for key in given:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS)
            raise BadUnitError(f"There is no key {shown(key)}.{hint} The keys are {', '.join(KEYS)}.")
    image = given.get("image")
    if not isinstance(image, str) or not image.strip():
        raise BadUnitError(
            f"image is {shown(image)}; it must be a picture as base64, a data URI or the 'sha256:…' id of a stored one."
        )
    pack = given.get("pack", FACE_PACKS[0])
    if pack not in FACE_PACKS:
        raise BadUnitError(f"pack is {shown(pack)}; it must be one of {', '.join(FACE_PACKS)}.")
    choices = parse_face_choices(FACE.parse(given.get("face")))
    if len(choices) != 1:
        raise BadUnitError(f"face is {shown(given['face'])}; it must be one choice, for the one picture.")
    return FaceQuery(
        image, choices[0], str(pack), _switch(given, "embedding", default=False), _switch(given, "crops", default=True)
    )


def _switch(given: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise BadUnitError(f"{key} is {shown(value)}; it must be true or false.")
    return value


def _answer(report: FaceReport) -> dict[str, Any]:
    width, height = report.size
    return {
        "width": width,
        "height": height,
        "chosen": report.chosen,
        "faces": [_face(number, one) for number, one in enumerate(report.faces, 1)],
    }


def _face(number: int, one: ReportedFace) -> dict[str, Any]:
    """JSON values; coordinates in pixels of the upright picture, to a hundredth."""
    answer: dict[str, Any] = {
        "index": number,
        "box": [round(float(part), 2) for part in one.face.box],
        "score": round(float(one.face.score), 4),
        "keypoints": [[round(float(x), 2), round(float(y), 2)] for x, y in one.face.keypoints],
        "warnings": list(one.warnings),
        "crop": png_data_uri(one.crop) if one.crop is not None else None,
    }
    if one.embedding is not None:
        answer["embedding"] = one.embedding.tolist()
    return answer
