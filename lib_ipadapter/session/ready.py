"""All of a job's units made ready: files chosen, references read, LoRAs read. Called by `session.job` before sampling.

The encoder and the face engine are opened here, serve every unit, and are gone before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..library.errors import IPAdapterError
from ..units.unit import Request, Unit
from .faces import FacePool
from .failures import afresh, as_named
from .features import EncoderPool
from .guidance import JobRescale
from .identity import JobNets
from .keypoints import find_keypoints
from .loras import JobLoras
from .models import Choice
from .passes import PassPlan
from .people import needs_face, require_a_face_in_sight, told_regions
from .planning import loaded_base, plan_units
from .preferences import INSTANTID
from .prepare import PreparedUnit, lora_request, prepare_unit, read_references
from .seats import Seating
from .services import Services

logger = logging.getLogger("ipadapter")

Warn = Callable[[str], None]


def ready_plan(p: Any, request: Request, services: Services, nets: JobNets, warn: Warn) -> PassPlan | None:
    """The units that act, ready for sampling; None where all have weight 0, or none could be prepared.

    Raises: IPAdapterError for the first unit that cannot be prepared, unless the user asked to go on without it; `warn`
    shows sentences.
    """
    if not _acting(request.numbered):
        return None
    loras = JobLoras(services, warn)
    prepared = _prepare_units(p, request.numbered, services, loras, nets, warn)
    loras.expect([unit.number for unit in prepared])
    if not prepared:
        return None
    require_a_face_in_sight(p, prepared)
    return PassPlan(tuple(prepared), loras, nets, JobRescale(services.host), told_regions(p, prepared))


def _prepare_units(
    p: Any, numbered: Sequence[tuple[int, Unit]], services: Services, loras: JobLoras, nets: JobNets, warn: Warn
) -> list[PreparedUnit]:
    def failed(number: int, error: IPAdapterError) -> None:
        """A unit that cannot be prepared stops the job, or is left out where the user asked for that."""
        try:
            if services.stop_on_failure():
                raise afresh(error, f"IP-Adapter unit {number}: ") from None
            warn(f"Generated without unit {number}. {error}")
        finally:
            # An error that a frame of its own traceback holds would keep all that the traceback holds, the encoder too.
            del error

    host, cache, store = services.host, services.cache, services.store()
    base = loaded_base(p, services)
    prepared: list[PreparedUnit] = []
    planned = list(plan_units(p, _acting(numbered), services, failed))
    seating = Seating(_people(numbered, planned), store)
    with EncoderPool(host, cache) as pool, FacePool(host, cache) as faces:
        for number, unit, choice in planned:
            try:
                one = prepare_unit(number, unit, choice, pool=pool, faces=faces, store=store, cache=cache)
                if needs_face(unit, choice):
                    references, seat = read_references(unit, store), seating.seat(number)
                    face = find_keypoints(unit, choice.require_pack(), references, seat, faces)
                    one = replace(one, face=face)
                    if choice.net is not None:
                        assert one.tokens is not None
                        one = replace(one, identity=nets.prepare(p, unit, choice, one.tokens, face))
                loras.prepare(p, lora_request(one), fits_now=choice.spec.base == base)
            except Exception as error:
                failed(number, as_named(error, "The unit"))
                continue
            prepared.append(one)
            if choice.pack is not None and choice.pack.note:
                logger.warning("unit %d: %s", number, choice.pack.note)
            for note in one.notes:
                warn(f"Unit {number}, {note}")
    return prepared


def _acting(units: Sequence[tuple[int, Unit]]) -> list[tuple[int, Unit]]:
    return [(number, unit) for number, unit in units if unit.weight != 0.0]


def _people(
    numbered: Sequence[tuple[int, Unit]], planned: Sequence[tuple[int, Unit, Choice]]
) -> list[tuple[int, Unit]]:
    """The job's InstantID units. One whose weight is 0 keeps its place among them, so that the others keep theirs."""
    found = {number for number, _, choice in planned if choice.spec.kind == INSTANTID}
    found |= {number for number, unit in numbered if unit.weight == 0.0 and unit.intent == INSTANTID}
    return [(number, unit) for number, unit in numbered if number in found]
