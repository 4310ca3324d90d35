"""What keys and shapes cannot tell apart, settled by other evidence; the report says which rule answered.

Each `Tie` is data: the possible answers with the words that a file name would use, the rules in the order in which
they are asked, and the answer when none speaks. A user's own choice beats all, a given sha256 comes next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .catalogue import KnownFile
from .fingerprints import short_hash
from .headers import Header
from .naming import AdapterNames

Answer = tuple[str, str]  # kind, variant


@dataclass(frozen=True)
class Evidence:
    """All that the rules may look at. Nothing of it is read before a rule asks."""

    path: Path
    header: Header
    names: AdapterNames
    base: str
    known: Sequence[KnownFile]
    sha256: str = ""
    override: str = ""


class Tie(NamedTuple):
    """Adapters of the same shapes. `words` is asked in order: the first answer with a word in the name wins."""

    answers: tuple[Answer, ...]
    words: tuple[tuple[Answer, str], ...]
    default: Answer
    rules: tuple[str, ...] = ("override", "sha256", "w8", "size", "name")
    default_rule: str = "default"
    dtypes: Mapping[tuple[str, ...], Answer] | None = None


# Patterns are searched in the lower-case file name without its extension, or title in the file's metadata.
_SEP = r"[-_ .]*"
# The word itself, not a part of one like "surface", and not the company.
_FACE = r"(?<!hugging)(?<!hugging[-_ .])(?<![a-z])face(?![a-z])"
FACEID_PLUS = Tie(
    answers=(("faceid_plus_v2", ""), ("faceid_plus", "")),
    words=(
        (("faceid_plus_v2", ""), rf"(?<![a-z])v2(?!\d)|plus{_SEP}v2(?!\d)"),
        (("faceid_plus", ""), rf"face{_SEP}id{_SEP}plus"),
    ),
    default=("faceid_plus_v2", ""),
)
FACE_RESAMPLER = Tie(
    answers=(("instantid", ""), ("faceid_portrait_unnorm", "")),
    words=(
        (("instantid", ""), r"instant"),
        (("faceid_portrait_unnorm", ""), r"unnorm|portrait"),
    ),
    default=("instantid", ""),
    rules=("override", "sha256", "w8", "size", "name", "dtype"),
    # (projector, keys and values)
    dtypes={("F32", "F32"): ("instantid", ""), ("F32", "F16"): ("faceid_portrait_unnorm", "")},
)
_PLUS_ANSWERS: tuple[Answer, ...] = (("plus", "composition"), ("plus", "plus-face"), ("plus", "plus"))
_PLUS_WORDS = (
    (("plus", "composition"), r"composition"),
    (("plus", "plus-face"), rf"plus{_SEP}face(?![a-z])|{_FACE}"),
    (("plus", "plus"), r"plus"),
)
PLUS = Tie(
    answers=_PLUS_ANSWERS,
    words=_PLUS_WORDS,
    default=("plus", "plus"),
    rules=("override", "sha256", "w8", "size", "name", "metadata"),
)
PLUS_SD1_TORCH = Tie(
    answers=_PLUS_ANSWERS,
    words=_PLUS_WORDS,
    default=("plus", "plus"),
    rules=("override", "sha256", "w8", "size", "name", "metadata", "dtype"),
    dtypes={
        ("F32", "F32"): ("plus", "plus"),
        ("F32", "F16"): ("plus", "plus"),
        ("F16", "F16"): ("plus", "plus-face"),
    },
)
# 448 px cannot be seen in the tensors; everything else about the two is equal, so the common one needs no doubt.
SDXL_STYLE = Tie(
    answers=(("base", "style-448"), ("base", "base")),
    words=((("base", "style-448"), rf"style{_SEP}ip{_SEP}adapter"),),
    default=("base", "base"),
    rules=("override", "sha256", "name"),
    default_rule="shapes",
)
INSTANTID_CONTROLNET = Tie(
    answers=(("controlnet", "instantid"), ("controlnet", "")),
    words=((("controlnet", "instantid"), r"instant"),),
    default=("controlnet", ""),
    rules=("override", "sha256", "w8", "name"),
    default_rule="shapes",
)


# What trainers and converters call a file's title: diffusers' and people's own, kohya's, Stability's ModelSpec.
_TITLE_KEYS = ("name", "title", "ss_output_name", "modelspec.title")


def settle(tie: Tie, evidence: Evidence) -> tuple[Answer, str]:
    """Answer a tie: `((kind, variant), rule)`, rule being the first in `tie.rules` that answers, or the default's."""
    for rule in tie.rules:
        answer = _RULES[rule](tie, evidence)
        if answer is not None:
            return answer, rule
    return tie.default, tie.default_rule


def _by_override(tie: Tie, evidence: Evidence) -> Answer | None:
    wanted = evidence.override
    return next((a for a in tie.answers if wanted and wanted in (a[1], a[0] if not a[1] else "")), None)


def _candidates(tie: Tie, evidence: Evidence) -> list[KnownFile]:
    return [k for k in evidence.known if (k.kind, k.variant) in tie.answers and k.base == evidence.base]


def _only(answers: set[Answer]) -> Answer | None:
    return answers.pop() if len(answers) == 1 else None


def _by_sha256(tie: Tie, evidence: Evidence) -> Answer | None:
    digest = evidence.sha256.lower()
    if not digest:
        return None
    rows = _candidates(tie, evidence)
    return _only({(k.kind, k.variant) for k in rows if len(k.sha256) >= 8 and digest.startswith(k.sha256)})


def _by_short_hash(tie: Tie, evidence: Evidence) -> Answer | None:
    """Hashes whose container is not known count too: eight equal digits are no accident, whatever the container."""
    by_digits = {w8.digits: (k.kind, k.variant) for k in _candidates(tie, evidence) for w8 in k.w8}
    return by_digits.get(short_hash(evidence.path)) if by_digits else None


def _by_size(tie: Tie, evidence: Evidence) -> Answer | None:
    header = evidence.header
    rows = _candidates(tie, evidence)
    return _only({(k.kind, k.variant) for k in rows if k.bytes == header.size and k.container == header.container})


def _by_dtype(tie: Tie, evidence: Evidence) -> Answer | None:
    projector = {info.dtype for info in evidence.names.projector.values()}
    attention = {info.dtype for info in evidence.names.attention.values()}
    if len(projector) != 1 or len(attention) != 1:
        return None
    return (tie.dtypes or {}).get((*projector, *attention))


def _by_metadata(tie: Tie, evidence: Evidence) -> Answer | None:
    """Titles only: free text ("not for faces", "exported with Hugging Face's tools") says anything."""
    metadata = evidence.header.metadata
    text = "\n".join(metadata.get(key, "")[:200] for key in _TITLE_KEYS).lower()
    return next((answer for answer, words in tie.words if answer != tie.default and re.search(words, text)), None)


def _by_name(tie: Tie, evidence: Evidence) -> Answer | None:
    stem = evidence.path.stem.lower()
    return next((answer for answer, words in tie.words if re.search(words, stem)), None)


_RULES: dict[str, Callable[[Tie, Evidence], Answer | None]] = {
    "override": _by_override,
    "sha256": _by_sha256,
    "w8": _by_short_hash,
    "size": _by_size,
    "dtype": _by_dtype,
    "metadata": _by_metadata,
    "name": _by_name,
}
