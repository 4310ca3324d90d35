"""A unit's references to its image tokens: what the encoders see of them, combined, through the adapter's projector.

`session.prepare` asks for the tokens once per unit and turns them into keys and values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.adapter import Adapter
from ..core.embeds import Combination, Features, ImageTokens, pair_tokens
from ..library.errors import BadUnitError
from ..library.spec import AdapterSpec
from ..units.face_choice import choice_for, parse_face_choices
from ..units.unit import Unit
from .faces import FacePool, FaceReading, mean_embedding, misfits
from .features import EncoderPool, Reference, View, as_features
from .models import Choice
from .preferences import FACE_FEATURES, INSTANTID


@dataclass(frozen=True)
class Seen:
    """A unit's tokens, and sentences about its references that the user should know."""

    tokens: ImageTokens
    notes: tuple[str, ...] = ()


def combination(unit: Unit, spec: AdapterSpec) -> str:
    """How the unit's references are combined: "mean" before the projector, "sequence" in it, "concat" or
    "average" of its tokens.

    Auto: photos of a person are averaged as embeddings, except for portrait adapters, which were trained on several
    photos side by side (tencent-ailab/IP-Adapter, ip_adapter_faceid_separate.py, n_cond); pictures are concatenated.
    """
    if unit.combine == "sequence" and not takes_sequences(spec):
        raise BadUnitError(
            "combine is sequence, which only adapters whose projector is a resampler of faces understand (InstantID, "
            "FaceID Portrait unnorm); choose mean or concat."
        )
    if unit.combine != "auto":
        return unit.combine
    portrait = spec.kind.startswith("faceid_portrait")
    return "mean" if spec.feature in FACE_FEATURES and not portrait else "concat"


def takes_sequences(spec: AdapterSpec) -> bool:
    """Whether the projector can see several faces at once and still make one face's tokens."""
    return spec.feature == "face_raw" and spec.projector.family == "resampler"


def picture_tokens(
    adapter: Adapter, unit: Unit, choice: Choice, view: View, references: Sequence[Reference], pool: EncoderPool
) -> Seen:
    """Tokens of an adapter that CLIP alone feeds."""
    encoder = choice.require_encoder()
    features = torch.cat([pool.reference(encoder, view, reference) for reference in references])
    how = combination(unit, choice.spec)
    if how == "mean":
        features = features.mean(dim=0, keepdim=True)
    cond = adapter.project(as_features(view, features))
    if unit.uncond == "zeros":
        uncond = None
    elif unit.uncond == "official" and view.feature == "pooled":
        # A zero embedding, which needs no encoder (tencent-ailab/IP-Adapter, IPAdapter.get_image_embeds).
        uncond = adapter.project(adapter.zero_features(1))
    else:
        negative = pool.negative(encoder, view, unit.uncond, references, unit.uncond_noise)
        uncond = adapter.project(as_features(view, negative))
    return Seen(pair_tokens(cond, uncond, _of_tokens(how)))


def read_faces(unit: Unit, choice: Choice, references: Sequence[Reference], faces: FacePool) -> list[FaceReading]:
    """The face that counts in each reference. Raises: NoFaceError naming the picture; IPAdapterError."""
    choices = parse_face_choices(unit.face)
    pack = choice.require_pack()
    return [faces.read(pack, reference, choice_for(choices, n)) for n, reference in enumerate(references)]


def face_tokens(
    adapter: Adapter,
    unit: Unit,
    choice: Choice,
    view: View | None,
    references: Sequence[Reference],
    pool: EncoderPool,
    faces: FacePool,
) -> Seen:
    """Tokens of a FaceID adapter: recognition embeddings, for the Plus kinds with CLIP's view of the aligned crops.

    Sources: ip_adapter_faceid.py and ip_adapter_faceid_separate.py of tencent-ailab/IP-Adapter (get_image_embeds).
    """
    readings = read_faces(unit, choice, references, faces)
    raw = torch.stack([reading.embedding for reading in readings])
    hidden = None
    if view is not None:
        encoder = choice.require_encoder()
        squares = [
            pool.square(encoder, view, ("face", reference.digest, choice.require_pack().fingerprint, reading.face.box),
                        reading.crop)
            for reference, reading in zip(references, readings, strict=True)
        ]  # fmt: skip
        hidden = torch.cat(squares)
    how = combination(unit, choice.spec)
    embeddings = raw
    if how == "mean":
        embeddings = mean_embedding(raw)
        hidden = hidden.mean(dim=0, keepdim=True) if hidden is not None else None
    elif how == "sequence":
        # Official InstantID reshapes to (1, n, 512): pipeline_stable_diffusion_xl_instantid.py, image embeds.
        embeddings = raw.unsqueeze(0)
    cond = adapter.project(_face_features(choice.spec, embeddings, hidden), s_scale=unit.s_scale)
    # The negative rows see as many faces as the prompt's, so that they weigh the same beside the resampler's queries.
    seen = raw.shape[0] if how == "sequence" else 0
    uncond = _face_uncond(adapter, unit, choice, view, references, pool, raw, seen)
    notes = [warning for reading in readings for warning in reading.warnings]
    notes += misfits(raw, [reference.name for reference in references])
    return Seen(pair_tokens(cond, uncond, _of_tokens(how)), tuple(notes))


def _face_uncond(
    adapter: Adapter,
    unit: Unit,
    choice: Choice,
    view: View | None,
    references: Sequence[Reference],
    pool: EncoderPool,
    raw: Tensor,
    sequence: int,
) -> Tensor | None:
    """Tokens (1, T, D) of the negative rows; None for zeros.

    Official: a zero embedding, with CLIP's view of a zero pixel tensor for the Plus kinds. "black" changes only what
    CLIP sees, since an embedding has no black picture; "noise" is `_noise`, with as much noise in what CLIP sees.
    `sequence` is how many of them go in at once, 0 for none.
    """
    if unit.uncond == "zeros":
        return None
    hidden = None
    if view is not None:
        hidden = pool.negative(choice.require_encoder(), view, unit.uncond, references, unit.uncond_noise)
    if unit.uncond != "noise":
        zeros = Features(face=torch.zeros(1, sequence, raw.shape[1])) if sequence else adapter.zero_features(1, hidden)
        return adapter.project(zeros, s_scale=unit.s_scale)
    noise = unit.uncond_noise * _noise(choice.spec, raw, references)
    if sequence:
        noise = noise.expand(1, sequence, -1)
    return adapter.project(Features(face=noise, hidden=hidden), s_scale=unit.s_scale)


def _noise(spec: AdapterSpec, raw: Tensor, references: Sequence[Reference]) -> Tensor:
    """An embedding (1, 512) of nobody, as the kind wants embeddings, from a generator seeded by the references.

    InstantID: uniform numbers from 0 to 1, which the amount multiplies, so that 0.35 gives ComfyUI_InstantID's negative
    (InstantID.py, ApplyInstantID: `noise * torch.rand_like`), whose seed is another. The others: a random direction, of
    unit length or as long as the references' embeddings on average.
    """
    seed = hashlib.sha256("".join(reference.digest for reference in references).encode()).hexdigest()[:15]
    generator = torch.Generator().manual_seed(int(seed, 16))
    if spec.kind == INSTANTID:
        return torch.rand(1, raw.shape[1], generator=generator)
    direction = normalize(torch.randn(1, raw.shape[1], generator=generator), dim=1)
    return direction * raw.norm(dim=1).mean() if spec.feature == "face_raw" else direction


def _face_features(spec: AdapterSpec, raw: Tensor, hidden: Tensor | None) -> Features:
    """Raw embeddings (n, 512) as the kind wants them: `face_raw` as they are, the others of unit length."""
    return Features(face=raw if spec.feature == "face_raw" else normalize(raw, dim=1), hidden=hidden)


def _of_tokens(how: str) -> Combination:
    """What is left to do with the tokens of references that were, or were not, averaged before."""
    return "concat" if how in ("mean", "sequence") else cast("Combination", how)
