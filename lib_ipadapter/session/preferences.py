"""Which adapters an intent may use, and which it takes first. `session.models` chooses with it.

`FEATURES` of adapters are those of `library.spec`; what an intent means for each layer is `core.weighting`'s.
"""

from __future__ import annotations

from ..library.errors import AdapterFileError
from ..library.files import FoundFile
from ..library.spec import AdapterSpec, FileReport

PICTURE_FEATURES = ("pooled", "hidden")
"""Adapters fed by CLIP alone."""
FACE_FEATURES = ("face", "face_raw", "face_hidden")
"""Adapters fed by a recognition embedding; `face_hidden` by CLIP's view of the aligned face beside it."""

# For each intent the kinds and variants that serve it best, first to last; what is not named comes after them.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "image": ("plus", "base"),
    "style": ("plus", "base"),
    "composition": ("composition", "plus", "base"),
    "style_composition": ("plus", "base"),
    "face": ("faceid_plus_v2", "faceid_plus", "faceid", "faceid_portrait", "faceid_portrait_unnorm"),
    "instantid": ("instantid",),
}
# Fed by CLIP but made for faces: never chosen for a picture while anything else is there, and for a face when there is
# no FaceID adapter at all.
_CLIP_FACES = ("plus-face", "full-face")
INSTANTID = "instantid"
"""Both the intent and the kind of adapter: one half of a pair, of which `session.identity_files` finds the other."""


def runs(report: FileReport) -> bool:
    """Whether the file is an adapter that this version can run."""
    return report.adapter is not None


def knows_identity(report: FileReport) -> bool:
    """Whether the adapter is fed by a recognition embedding."""
    return report.adapter is not None and report.adapter.feature in FACE_FEATURES


def serves(report: FileReport, intent: str) -> bool:
    """Whether auto may choose the adapter: faces for faces, pictures for everything else."""
    if not runs(report):
        return False
    if INSTANTID in (intent, report.kind):
        return intent == report.kind
    if intent == "face":
        return knows_identity(report) or report.variant in _CLIP_FACES
    return not knows_identity(report)


def usable(file: FoundFile) -> AdapterSpec:
    """The file's description, if it is an adapter that this version can run. Raises: AdapterFileError."""
    report = file.report
    if report.adapter is None:
        raise AdapterFileError(f"{file.name} cannot be used as an adapter. {report.message}")
    return report.adapter


def rank(file: FoundFile, intent: str) -> tuple[bool, int, str]:
    """Sort key: the intent's preferred variants first, names for the rest; face variants last for pictures, and after
    those that know identity for faces.
    """
    report = file.report
    order = _PREFERENCE.get(intent, _PREFERENCE["image"])
    place = next((n for n, wanted in enumerate(order) if wanted in (report.variant, report.kind)), len(order))
    if intent == "face":
        return (not knows_identity(report), place, file.name.lower())
    # The composition variant answers to the kind "plus" too, and is not what other intents mean by it.
    astray = report.variant == "composition" and intent != "composition"
    return (report.variant in _CLIP_FACES or astray, place, file.name.lower())
