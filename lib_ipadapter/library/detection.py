"""What a model file is, in one FileReport: the ordered questions of the library, asked of a header.

`files` and the command line inspect files with this; `session` gets the AdapterSpec from the report. The questions,
first hit wins: is it readable; does it have a projector and attention weights; if not, which other file is it
(`rows`); if so, which adapter (`adapters`, `projectors`), and what settles what shapes cannot tell (`ties`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from . import ties
from .adapters import context_base, describe_adapter
from .catalogue import KnownFile, by_sha256, expected_bytes, known_files
from .checkpoints import describe_checkpoint
from .controlnets import describe_controlnet
from .errors import AdapterFileError
from .face_files import describe_face_file
from .headers import Header, read_header
from .naming import AdapterNames, normalise, strip_wrappers
from .printable import shown
from .rows import FAMILIES, OTHER_FILES, Row, first_hit
from .spec import AdapterSpec, EncoderName, FileReport
from .ties import Evidence
from .verdicts import Verdict, damaged
from .vision import describe_vision, title

_KIND_TITLES = {
    "base": "IP-Adapter",
    "plus": "IP-Adapter Plus",
    "full_face": "IP-Adapter Full Face",
    "faceid": "IP-Adapter FaceID",
    "faceid_plus": "IP-Adapter FaceID Plus",
    "faceid_plus_v2": "IP-Adapter FaceID Plus v2",
    "faceid_portrait": "IP-Adapter FaceID Portrait",
    "faceid_portrait_unnorm": "IP-Adapter FaceID Portrait (unnorm)",
    "instantid": "InstantID",
}
_RULE_WORDS = {
    "override": "chosen by you",
    "sha256": "known by its sha256",
    "w8": "known by its short hash",
    "size": "known by its exact size",
    "dtype": "told by how its numbers are stored",
    "metadata": "told by its metadata",
    "name": "told by its file name alone",
    "default": "assumed, since nothing in the file or its name tells",
}


def inspect_file(path: Path, *, known_sha256: str | None = None, override: str | None = None) -> FileReport:
    """Say what a file is from its header; never raises for a bad file.

    `known_sha256` is the file's digest where the caller has it; `override` is the user's own choice among what shapes
    cannot tell apart: a variant ("composition") or a kind ("instantid").
    """
    try:
        face = describe_face_file(path)
        if face is not None:
            return _report(face, path)
        return describe(read_header(path), path, known_sha256=known_sha256, override=override)
    except AdapterFileError as error:
        return FileReport(str(path), "unreadable", message=_with_expected(str(error), path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return FileReport(str(path), "unreadable", message=f"The file cannot be read: {reason}.")


def describe(
    header: Header,
    path: Path,
    known: Sequence[KnownFile] | None = None,
    *,
    known_sha256: str | None = None,
    override: str | None = None,
) -> FileReport:
    """Say what a file is from its header that is already read; `path` gives the name and, for ties, 64 KiB."""
    names = normalise(header.tensors)
    rows = known_files() if known is None else known
    evidence = Evidence(path, header, names, "", rows, known_sha256 or "", override or "")
    if not header.tensors:
        return _report(Verdict("not_adapter", "A file without tensors."), path)
    if names.projector and names.attention:
        found = describe_adapter(evidence)
        return _report(found, path) if isinstance(found, Verdict) else _supported(found, path)
    return _other(header, names, evidence, path)


def _other(header: Header, names: AdapterNames, evidence: Evidence, path: Path) -> FileReport:
    """Name a file that lacks a projector, attention weights or both."""
    bare = replace(header, tensors=dict(zip(strip_wrappers(header.tensors), header.tensors.values(), strict=True)))
    text = "\n".join(bare.tensors)
    family = first_hit(FAMILIES, text)
    if family is not None:
        return _report(_family(family, bare), path)
    if names.projector or names.attention:
        return _report(_half(names), path)
    row = first_hit(OTHER_FILES, text)
    if row is not None and row.kind == "vision_encoder":
        return _vision(header, path)
    report = _report(_companion(row, bare, evidence), path)
    if report.kind == "controlnet":
        found = describe_controlnet(header.tensors)
        report = report if isinstance(found, Verdict) else replace(report, controlnet=found)
    return report


def _companion(row: Row | None, header: Header, evidence: Evidence) -> Verdict:
    if row is None:
        names = ", ".join(shown(name) for name in list(header.tensors)[:3])
        return Verdict("not_adapter", f"Not an IP-Adapter ({len(header.tensors)} tensors: {names}).")
    if row.kind == "controlnet":
        return _controlnet(row, header, evidence)
    if row.kind == "lora" and row.status == "not_adapter":
        return _lora(row, header, evidence)
    verdict = _from_row(row)
    checkpoint = describe_checkpoint(header.tensors)
    return verdict if checkpoint is None else replace(verdict, base=checkpoint.base)


def _family(row: Row, header: Header) -> Verdict:
    """Name a relative; a diffusers UNet's own base shows in the adapter's keys and values."""
    keys = {name: info for name, info in header.tensors.items() if ".processor.to_k_ip." in name}
    return replace(_from_row(row), base=row.base or context_base(keys))


def _half(names: AdapterNames) -> Verdict:
    if names.projector:
        return damaged(f"it has only a projector ({len(names.projector)} tensors) and no attention weights")
    return damaged(f"it has only attention weights ({len(names.attention)} tensors) and no projector")


def _from_row(row: Row) -> Verdict:
    return Verdict(row.status, row.sentence, kind=row.kind, base=row.base, variant=row.variant)


def _vision(header: Header, path: Path) -> FileReport:
    found = describe_vision(header.tensors)
    if isinstance(found, Verdict):
        return _report(found, path)
    projected = f", projecting to {found.projected_dim}" if found.projected_dim else ", without its projection"
    message = (
        f"{title(found.name)[0].upper()}{title(found.name)[1:]}: a vision encoder {found.hidden_dim} wide with "
        f"{found.depth} layers{projected} ({found.layout} layout, {found.image_size} px)."
    )
    # The vocabulary of what an adapter can need; ViT-L/14 at 224 px is no published adapter's encoder.
    published = (found.name,) if found.name in get_args(EncoderName) else ()
    return FileReport(
        str(path), "not_adapter", "vision_encoder", found.name, encoder=published, decided_by="shapes",
        message=message, vision_encoder=found,
    )  # fmt: skip


def _controlnet(row: Row, header: Header, evidence: Evidence) -> Verdict:
    """Name a ControlNet's base by its cross-attention's context, and InstantID's by what ties can tell."""
    base = context_base({name: info for name, info in header.tensors.items() if name.endswith("attn2.to_k.weight")})
    if "diffusers" not in row.sentence or base != "SDXL" or "add_embedding.linear_1.weight" not in header.tensors:
        return Verdict(row.status, row.sentence, row.kind, base, row.variant)
    (kind, variant), rule = ties.settle(ties.INSTANTID_CONTROLNET, replace(evidence, base=base))
    sentence = row.sentence
    if variant:
        sentence = f"InstantID's ControlNet ({_RULE_WORDS[rule]}); it is used together with InstantID's adapter file."
    return Verdict(row.status, sentence, kind, base, variant, decided_by=rule)


_FACEID_LORA_SIZES = {256: "SD1", 1120: "SDXL", 1680: "SDXL"}


def _lora(row: Row, header: Header, evidence: Evidence) -> Verdict:
    """Tell the LoRA that belongs to a FaceID adapter: every attention's q, k, v and out, and nothing else."""
    base = _FACEID_LORA_SIZES.get(len(header.tensors), "")
    parts = ("to_q.", "to_k.", "to_v.", "to_out_0.")
    whole = base and all(
        name.startswith("lora_unet_") and any(f"_attn{n}_{p}" in name for n in (1, 2) for p in parts)
        for name in header.tensors
    )
    if not whole:
        return _from_row(row)
    known = by_sha256(evidence.sha256) if evidence.sha256 else None
    sentence = "The LoRA that accompanies a FaceID adapter; the adapter file has it inside, so it is not needed here."
    variant = known.variant if known is not None and known.kind == "lora" else "faceid"
    return Verdict(row.status, sentence, "lora", base, variant)


def _supported(spec: AdapterSpec, path: Path) -> FileReport:
    needs = " and ".join(_encoder_words(spec))
    layers = f"{spec.tokens} tokens, {len(spec.layers)} layers"
    message = f"{_KIND_TITLES[spec.kind]} for {spec.base}: {layers}, needs {needs}"
    if spec.decided_by in _RULE_WORDS:
        what = spec.variant if spec.variant and spec.kind in ("plus", "base") else _KIND_TITLES[spec.kind]
        message += f"; that it is {what} is {_RULE_WORDS[spec.decided_by]}"
    return FileReport(
        str(path), "supported", spec.kind, spec.variant, spec.base, spec.tokens, tuple(spec.encoders),
        spec.decided_by, message + ".", adapter=spec,
    )  # fmt: skip


def _encoder_words(spec: AdapterSpec) -> list[str]:
    packs = [f"the {name} face pack" for name in spec.encoders if name in ("buffalo_l", "antelopev2")]
    towers = [title(name) for name in spec.encoders if name.startswith("clip_")]
    if not towers and spec.feature in ("pooled", "hidden", "face_hidden"):
        width = spec.projector.hidden_dim or spec.projector.input_dim
        what = "pooled output is" if spec.feature == "pooled" else "hidden states are"
        towers = [f"any vision encoder whose {what} {width} wide"]
    return packs + towers


def _report(verdict: Verdict, path: Path) -> FileReport:
    return FileReport(
        str(path), verdict.status, verdict.kind, verdict.variant, verdict.base, 0, verdict.encoder,
        verdict.decided_by, verdict.message,
    )  # fmt: skip


def _with_expected(message: str, path: Path) -> str:
    expected = expected_bytes(path.name)
    if expected is None or not message.startswith("Truncated") or str(expected) in message:
        return message
    return f"{message[:-1]} (the published file of this name has {expected} bytes)."
