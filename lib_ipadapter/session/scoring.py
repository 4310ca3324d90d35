"""The identity score: how much the faces in a job's results are like the face in a unit's references.

`session.job` asks `scores_for` once a job, hands the answer every finished picture, and writes what it says. Nothing
here may cost the picture: what fails becomes a warning, and the scoring of that unit, or of that picture, ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..library.errors import FacePackError
from ..library.face_packs import FacePack
from ..units.face_choice import choice_for, parse_face_choices
from ..units.infotext import infotext_key
from .faces import FacePool, mean_embedding
from .failures import as_named
from .models import FACE_PACKS, Models
from .prepare import PreparedUnit, read_references
from .services import Services

WHAT = "The identity score"
NO_FACE = "no face"


@dataclass(frozen=True)
class ScoredUnit:
    """The face that a unit's results are compared with: `identity` (512,) of unit length, as `pack` sees it."""

    number: int
    pack: FacePack
    identity: Tensor = field(repr=False)


class IdentityScores:
    """The scores of one job, picture by picture; `pool` is released between batches. `warn` shows a sentence.

    `unscored` pictures of the job were finished before.
    """

    def __init__(
        self, units: Sequence[ScoredUnit], pool: FacePool, warn: Callable[[str], None], unscored: int = 0
    ) -> None:
        self._units = units
        self._pool = pool
        self._warn = warn
        self._batch: list[dict[int, float | None]] = []
        self._all: list[dict[int, float | None]] = [{} for _ in range(unscored)]

    def begin_batch(self) -> None:
        """Forget the places of the last batch's pictures, and give its engine's memory back before sampling."""
        self._batch = []
        self._pool.release()

    def add(self, picture: Image.Image) -> dict[str, Callable[..., str | None]]:
        """Score the next picture of the batch.

        Returns a value per unit for the infotext, which the host calls for each picture with its place as `index`.
        """
        scores: dict[int, float | None] = {}
        for unit in self._units:
            try:
                scores[unit.number] = self._score(unit, picture)
            except Exception as error:
                self._warn(f"No identity score of unit {unit.number}. {as_named(error, WHAT)}")
        self._batch.append(scores)
        self._all.append(scores)
        return {score_key(unit.number): self._text_of(unit.number) for unit in self._units}

    def _score(self, unit: ScoredUnit, picture: Image.Image) -> float | None:
        found = self._pool.embeddings(unit.pack, picture)
        if not len(found):
            return None
        return round(float((normalize(found, dim=1) @ unit.identity).max()), 4)

    def _text_of(self, number: int) -> Callable[..., str | None]:
        def text(index: int = 0, use_main_prompt: bool = False, **_: Any) -> str | None:
            if use_main_prompt or index >= len(self._batch):
                return None  # a grid, or a picture that was saved on the way
            if number not in self._batch[index]:
                return None  # it could not be scored
            return _shown(self._batch[index][number])

        return text

    def values(self) -> dict[str, list[float | None]]:
        """Every picture's score, per unit; None where a picture shows no face or could not be scored."""
        return {score_key(unit.number): [scores.get(unit.number) for scores in self._all] for unit in self._units}

    def sentences(self) -> list[str]:
        """What the result's text says: each unit's scores, and which picture of several is the best."""
        return [_sentence(unit.number, self._all) for unit in self._units if self._all]

    def write(self, p: Any, processed: Any) -> None:
        """Put every picture's score into the result's text and into what the API answers."""
        values = self.values()
        # What a grid of several jobs (X/Y/Z plot) writes afterwards is not one picture's.
        own = {key: value for key, value in p.extra_generation_params.items() if key not in values}
        p.extra_generation_params = own
        processed.extra_generation_params = own | values
        sentences = [f"IP-Adapter: {sentence}\n" for sentence in self.sentences()]
        processed.comments = "".join([processed.comments or "", *sentences])

    def close(self) -> None:
        self._pool.release()


def score_key(number: int) -> str:
    """The infotext key of a unit's score."""
    return f"{infotext_key(number)} identity"


def scores_for(
    prepared: Sequence[PreparedUnit], services: Services, warn: Callable[[str], None], unscored: int = 0
) -> IdentityScores | None:
    """The scores that these units ask for; None where none does, or none can be scored (`warn` says why)."""
    pool = FacePool(services.host, services.cache)
    units: list[ScoredUnit] = []
    for one in prepared:
        if not one.unit.score:
            continue
        try:
            units.append(_scored(one, services, pool))
        except Exception as error:
            warn(f"No identity score of unit {one.number}. {as_named(error, WHAT)}")
    pool.release()
    return IdentityScores(units, pool, warn, unscored) if units else None


def _scored(prepared: PreparedUnit, services: Services, pool: FacePool) -> ScoredUnit:
    """What a unit's results are compared with: the mean of its photos' faces.

    An adapter without a face pack of its own is scored with whichever is installed.
    Raises: NoFaceError, FacePackError.
    """
    unit = prepared.unit
    pack = prepared.choice.pack or _any_pack(services.models)
    choices = parse_face_choices(unit.face)
    readings = [
        pool.read(pack, reference, choice_for(choices, place))
        for place, reference in enumerate(read_references(unit, services.store()))
    ]
    mean = mean_embedding(torch.stack([reading.embedding for reading in readings]))
    return ScoredUnit(prepared.number, pack, normalize(mean, dim=1)[0])


def _any_pack(models: Models) -> FacePack:
    missing: FacePackError | None = None
    for name in FACE_PACKS:
        try:
            return models.face_pack(name)
        except FacePackError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _sentence(number: int, pictures: Sequence[dict[int, float | None]]) -> str:
    texts = ", ".join(_shown(scores[number]) if number in scores else "not scored" for scores in pictures)
    known = [score for scores in pictures if (score := scores.get(number)) is not None]
    if len(pictures) < 2 or not known:
        return f"Identity score of unit {number}: {texts}."
    best = next(place for place, scores in enumerate(pictures, 1) if scores.get(number) == max(known))
    return f"Identity scores of unit {number}: {texts}; the best is picture {best}."


def _shown(score: float | None) -> str:
    return NO_FACE if score is None else f"{score:.3f}"
