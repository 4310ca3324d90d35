"""One unit made ready: its pictures read, its files chosen, its keys and values computed. All that can fail.

`session.job` calls `prepare_unit` at the start of sampling, the one frame from which the hosts let errors through.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..core.adapter import LayerKV, load_adapter
from ..core.schedule import Window
from ..encoders.squares import Framing
from ..library.errors import BadImageError
from ..units.fields import FIELDS, REGION
from ..units.images import ImageStore, decode_reference, digest
from ..units.unit import Unit
from .cache import ResultCache
from .faces import FacePool
from .features import EncoderPool, Reference, View, require_finite
from .identity_unit import PreparedIdentity
from .keypoints import FaceKeypoints
from .loras import LoraRequest
from .models import Choice
from .preferences import INSTANTID
from .regions import ReadyRegion, read_region
from .tokens import combination, face_tokens, picture_tokens

logger = logging.getLogger("ipadapter")

LARGE_SIDE = 448
"""The one published square that is larger than its encoder's own; every other adapter takes the encoder's."""


@dataclass(frozen=True)
class PreparedUnit:
    """A unit as sampling needs it. `number` counts from 1, as the page does; `digests` name its pictures.

    `notes` are sentences about the pictures that the user should see with the result; `region` is None where the unit
    acts everywhere, or where `face`, an InstantID unit's on the canvas, says (`session.people`). `tokens` (2, T, D),
    prompt and negative, are kept where IdentityNet needs them, and `identity` is what it needs beside them.
    """

    number: int
    unit: Unit
    choice: Choice
    digests: tuple[str, ...]
    window: Window
    kv: LayerKV = field(repr=False)
    notes: tuple[str, ...] = ()
    region: ReadyRegion | None = None
    tokens: Tensor | None = field(default=None, repr=False)
    face: FaceKeypoints | None = None
    identity: PreparedIdentity | None = None

    @property
    def name(self) -> str:
        return f"Unit {self.number}"


@dataclass(frozen=True)
class _Projected:
    """What is kept of a prepared unit between jobs."""

    kv: LayerKV
    notes: tuple[str, ...]
    tokens: Tensor | None


def prepare_unit(
    number: int,
    unit: Unit,
    choice: Choice,
    *,
    pool: EncoderPool,
    faces: FacePool,
    store: ImageStore,
    cache: ResultCache,
) -> PreparedUnit:
    """Read, encode and project one unit, or take the results from the cache.

    Raises: IPAdapterError for whatever is missing, damaged or does not fit.
    """
    started, encoded, analysed = time.perf_counter(), pool.encoded, faces.analysed
    references = read_references(unit, store)
    region = read_region(unit, store)
    digests = tuple(reference.digest for reference in references)
    # What a file is may depend on its name (448 px), which its bytes' fingerprint does not know: the view says it.
    view = choice_view(choice, unit.crop)
    key = ("kv", *_files(choice), view, digests, *_settings(unit, choice), pool.dtype, pool.device.type)
    projected = cache.get(key, _Projected)
    cached = projected is not None
    if projected is None:
        projected = _project(unit, choice, view, references, pool, faces)
        cache.put(key, projected, sum(k.nbytes + v.nbytes for k, v in projected.kv.values()))
    kv = projected.kv
    logger.info(
        "unit %d: %s, %s, %d tokens, %d layers, %s, %.0f ms",
        number, choice.name, choice.sources, next(iter(kv.values()))[0].shape[1], len(kv),
        "cached" if cached else _work(pool.encoded - encoded, faces.analysed - analysed),
        1000 * (time.perf_counter() - started),
    )  # fmt: skip
    return PreparedUnit(
        number,
        unit,
        choice,
        digests,
        Window(unit.start, unit.end),
        kv,
        projected.notes,
        region,
        projected.tokens,
    )


def _files(choice: Choice) -> tuple[str, ...]:
    """What stands for the contents of the chosen files."""
    encoder = choice.encoder.fingerprint if choice.encoder is not None else ""
    pack = choice.pack.fingerprint if choice.pack is not None else ""
    return (choice.fingerprint, choice.spec.kind, encoder, pack)


def _settings(unit: Unit, choice: Choice) -> tuple[object, ...]:
    """The unit's fields that change its tokens."""
    face = (unit.face, unit.s_scale) if choice.pack is not None else ()
    noise = (unit.uncond_noise,) if unit.uncond == "noise" else ()
    return (combination(unit, choice.spec), unit.uncond, *noise, *face)


def _work(squares: int, pictures: int) -> str:
    """What had to be computed, in words."""
    done = [f"{n} {what}{'' if n == 1 else 's'} {how}" for n, what, how in
            ((pictures, "picture", "analysed"), (squares, "square", "encoded")) if n]  # fmt: skip
    return ", ".join(done) or "projected anew"


def order_of_sums(one: PreparedUnit) -> tuple[object, ...]:
    """What to sort a job's units by, so that their order says nothing: what they are, without their numbers."""
    unit, face = one.unit, one.face
    region = one.region.text if one.region is not None else unit.region
    settings = (getattr(unit, spec.name) for spec in FIELDS if spec.kind != "images" and spec is not REGION)
    return (one.choice.fingerprint, one.digests, region, face.points if face is not None else (), *settings)


def lora_request(prepared: PreparedUnit) -> LoraRequest:
    """What a unit asks of its adapter's LoRA; adapters without one, and a strength of 0, ask nothing."""
    choice = prepared.choice
    return LoraRequest(prepared.number, prepared.unit.lora, choice.spec, choice.path, choice.fingerprint)


def read_references(unit: Unit, store: ImageStore) -> list[Reference]:
    """The unit's pictures as bytes. Raises BadImageError naming the picture."""
    references: list[Reference] = []
    for index, value in enumerate(unit.images, start=1):
        name = f"picture {index}"
        try:
            data = decode_reference(value, store)
        except BadImageError as error:
            raise BadImageError(f"{name}: {error}") from error
        references.append(Reference(name, digest(data), data))
    return references


def _project(
    unit: Unit,
    choice: Choice,
    view: View | None,
    references: Sequence[Reference],
    pool: EncoderPool,
    faces: FacePool,
) -> _Projected:
    adapter = load_adapter(choice.spec, choice.path, device=pool.device)
    if choice.pack is not None:
        seen = face_tokens(adapter, unit, choice, view, references, pool, faces)
    else:
        assert view is not None
        seen = picture_tokens(adapter, unit, choice, view, references, pool)
    kv = {key: (k.cpu(), v.cpu()) for key, (k, v) in adapter.layer_kv(seen.tokens, dtype=pool.dtype).items()}
    require_finite(f"The adapter {choice.name}", pool.dtype, *(tensor for pair in kv.values() for tensor in pair))
    tokens = torch.cat([seen.tokens.cond, seen.tokens.uncond]).float().cpu() if choice.spec.kind == INSTANTID else None
    return _Projected(kv, seen.notes, tokens)


def choice_view(choice: Choice, crop: str) -> View | None:
    """How a chosen adapter looks at a picture through its encoder; None for one that has no encoder.

    FaceID-Plus sees the aligned face, which is a square already.
    """
    if choice.encoder is None:
        return None
    side = LARGE_SIDE if choice.spec.image_size == LARGE_SIDE else choice.encoder.spec.image_size
    if choice.pack is not None:
        return View("hidden", side, "stretch")
    return View(choice.spec.feature, side, cast("Framing", crop))
