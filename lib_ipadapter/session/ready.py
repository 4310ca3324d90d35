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
from .loras import JobLoras
from .passes import PassPlan
from .planning import loaded_base, plan_units
from .prepare import PreparedUnit, lora_request, prepare_unit, read_references
from .services import Services

logger = logging.getLogger("ipadapter")

Warn = Callable[[str], None]


def ready_plan(p: Any, request: Request, services: Services, nets: JobNets, warn: Warn) -> PassPlan | None:
    """The units that act, ready for sampling; None where all have weight 0, or none could be prepared.

    Raises: IPAdapterError for the first unit that cannot be prepared, unless the user asked to go on without it; `warn`
    shows sentences.
    """
    active = [(number, unit) for number, unit in request.numbered if unit.weight != 0.0]
    if not active:
        return None
    loras = JobLoras(services, warn)
    prepared = _prepare_units(p, active, services, loras, nets, warn)
    loras.expect([unit.number for unit in prepared])
    return PassPlan(tuple(prepared), loras, nets, JobRescale(services.host)) if prepared else None


def _prepare_units(
    p: Any, active: Sequence[tuple[int, Unit]], services: Services, loras: JobLoras, nets: JobNets, warn: Warn
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
    with EncoderPool(host, cache) as pool, FacePool(host, cache) as faces:
        for number, unit, choice in plan_units(p, active, services, failed):
            try:
                one = prepare_unit(number, unit, choice, pool=pool, faces=faces, store=store, cache=cache)
                if choice.net is not None:
                    references, tokens = read_references(unit, store), one.tokens
                    assert tokens is not None
                    identity = nets.prepare(p, unit, choice, tokens, references, faces, store)
                    one = replace(one, identity=identity)
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
