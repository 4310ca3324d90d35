"""Which ControlNet is InstantID's IdentityNet: the other half of the pair. `session.models` asks per unit.

ControlNets of a size look alike from their tensors. InstantID's is told by its content (the published hash), then by a
name that has "instant" in it; any other is taken only where the user names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..library.catalogue import known_files
from ..library.errors import IdentityNetError, WrongBaseError
from ..library.files import FoundFile, Listing
from ..library.fingerprints import short_hash
from ..library.spec import ControlNetSpec

AUTO, NONE = "auto", "none"
CONTROLNET = "controlnet"
NAME_PART = "instant"
PUBLISHED = "ControlNetModel/diffusion_pytorch_model.safetensors of InstantX/InstantID"
_SHOWN = 5

Fit = Callable[[ControlNetSpec], ControlNetSpec]
"""The description for the loaded UNet. Raises: WrongBaseError where it fits neither that nor the pair's other half."""


@dataclass(frozen=True)
class IdentityFile:
    """An IdentityNet on disk; `fingerprint` changes when its bytes do."""

    name: str
    path: Path
    spec: ControlNetSpec
    fingerprint: str


def find_identity_net(listing: Listing, wanted: str, adapter: str, fit: Fit) -> tuple[FoundFile, ControlNetSpec]:
    """The file called `wanted`, or for "auto" the first InstantID ControlNet that fits; with its description.

    `adapter` is the name of the pair's other half.

    Raises: IdentityNetError, WrongBaseError; AdapterNotFoundError for a name that no file has.
    """
    if wanted.strip().lower() != AUTO:
        file = listing.find(wanted)
        return file, _fitted(file, fit)
    files = listing.of_kind(CONTROLNET)
    found = sorted((file for file in files if is_instantid(file)), key=lambda file: not _is_published(file))
    failure: IdentityNetError | WrongBaseError | None = None
    for file in found:
        try:
            return file, _fitted(file, fit)
        except (IdentityNetError, WrongBaseError) as error:
            failure = failure or error
    if failure is not None:
        raise failure
    raise IdentityNetError(_missing(listing, adapter, [file.name for file in files]))


def is_instantid(file: FoundFile) -> bool:
    """Whether a ControlNet is InstantID's, by its content or its name; folders count as part of a name."""
    return file.report.variant == "instantid" or NAME_PART in file.name.lower() or _is_published(file)


def _is_published(file: FoundFile) -> bool:
    """By length and the eight digits that the WebUIs show. A file that is gone is not."""
    try:
        size = file.path.stat().st_size
        same = [known for known in known_files() if known.kind == CONTROLNET and known.bytes == size]
        return bool(same) and any(hash_.digits == short_hash(file.path) for known in same for hash_ in known.w8)
    except OSError:
        return False


def _fitted(file: FoundFile, fit: Fit) -> ControlNetSpec:
    report = file.report
    if report.kind != CONTROLNET:
        raise IdentityNetError(f"{file.name} is no ControlNet, so it cannot be IdentityNet. {report.message}")
    if report.controlnet is None:
        raise IdentityNetError(f"{file.name} cannot run as IdentityNet. {report.message}")
    try:
        return fit(report.controlnet)
    except WrongBaseError as error:
        raise WrongBaseError(f"{file.name}: {error}") from error


def _missing(listing: Listing, adapter: str, others: Sequence[str]) -> str:
    sentence = (
        f"{adapter} is one half of InstantID, and its other half, IdentityNet, is in none of {listing.searched()}. Put "
        f"{PUBLISHED} into models/ControlNet under a name with '{NAME_PART}' in it"
    )
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        sentence += (
            f"; if one of the other ControlNets there is InstantID's ({', '.join(others[:_SHOWN])}{more}), choose it "
            "by name in the unit"
        )
    return f"{sentence}; or set the unit's IdentityNet to none."
