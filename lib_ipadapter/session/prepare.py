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

from ..core.adapter import LayerKV, load_adapter
from ..core.embeds import pair_tokens
from ..core.schedule import Window
from ..encoders.squares import Framing
from ..library.errors import BadImageError
from ..units.images import ImageStore, decode_reference, digest
from ..units.unit import Unit
from .cache import ResultCache
from .features import EncoderPool, Reference, View, as_features, require_finite
from .loras import LoraRequest
from .models import Choice

logger = logging.getLogger("ipadapter")

LARGE_SIDE = 448
"""The one published square that is larger than its encoder's own; every other adapter takes the encoder's."""


@dataclass(frozen=True)
class PreparedUnit:
    """A unit as sampling needs it. `number` counts from 1, as the page does; `digests` name its pictures."""

    number: int
    unit: Unit
    choice: Choice
    digests: tuple[str, ...]
    window: Window
    kv: LayerKV = field(repr=False)

    @property
    def name(self) -> str:
        return f"Unit {self.number}"


def prepare_unit(
    number: int, unit: Unit, choice: Choice, *, pool: EncoderPool, store: ImageStore, cache: ResultCache
) -> PreparedUnit:
    """Read, encode and project one unit, or take the results from the cache.

    Raises: IPAdapterError for whatever is missing, damaged or does not fit.
    """
    started, encoded = time.perf_counter(), pool.encoded
    references = read_references(unit, store)
    digests = tuple(reference.digest for reference in references)
    # What a file is may depend on its name (448 px), which its bytes' fingerprint does not know: the view says it.
    view = choice_view(choice, unit.crop)
    files = (choice.fingerprint, choice.spec.kind, choice.encoder.fingerprint, view)
    key = ("kv", *files, digests, unit.combine, unit.uncond, pool.dtype, pool.device.type)
    kv = cache.get(key, dict)
    cached = kv is not None
    if kv is None:
        kv = _keys_and_values(unit, choice, view, references, pool)
        cache.put(key, kv, sum(k.nbytes + v.nbytes for k, v in kv.values()))
    kv = cast("LayerKV", kv)
    count = pool.encoded - encoded
    spent = "cached" if cached else f"{count} square{'' if count == 1 else 's'} encoded"
    logger.info(
        "unit %d: %s, encoder %s, %d tokens, %d layers, %s, %.0f ms",
        number, choice.name, choice.encoder.name, next(iter(kv.values()))[0].shape[1], len(kv), spent,
        1000 * (time.perf_counter() - started),
    )  # fmt: skip
    return PreparedUnit(number, unit, choice, digests, Window(unit.start, unit.end), kv)


def lora_request(prepared: PreparedUnit) -> LoraRequest:
    """What a unit asks of its adapter's LoRA; adapters without one, and a strength of 0, ask nothing."""
    choice = prepared.choice
    strength = float(getattr(prepared.unit, "lora", 0.0))
    return LoraRequest(prepared.number, strength, choice.spec, choice.path, choice.fingerprint)


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


def _keys_and_values(
    unit: Unit, choice: Choice, view: View, references: Sequence[Reference], pool: EncoderPool
) -> LayerKV:
    adapter = load_adapter(choice.spec, choice.path, device=pool.device)
    features = torch.cat([pool.reference(choice.encoder, view, reference) for reference in references])
    cond = adapter.project(as_features(view, features))
    if unit.uncond == "zeros":
        uncond = None
    elif unit.uncond == "official" and view.feature == "pooled":
        # A zero embedding, which needs no encoder (tencent-ailab/IP-Adapter, IPAdapter.get_image_embeds).
        uncond = adapter.project(adapter.zero_features(1))
    else:
        uncond = adapter.project(as_features(view, pool.negative(choice.encoder, view, unit.uncond, references)))
    tokens = pair_tokens(cond, uncond, unit.combine)  # type: ignore[arg-type]
    kv = {key: (k.cpu(), v.cpu()) for key, (k, v) in adapter.layer_kv(tokens, dtype=pool.dtype).items()}
    require_finite(f"The adapter {choice.name}", pool.dtype, *(tensor for pair in kv.values() for tensor in pair))
    return kv


def choice_view(choice: Choice, crop: str) -> View:
    """How a chosen adapter looks at a picture through its encoder."""
    side = LARGE_SIDE if choice.spec.image_size == LARGE_SIDE else choice.encoder.spec.image_size
    return View(choice.spec.feature, side, cast("Framing", crop))
