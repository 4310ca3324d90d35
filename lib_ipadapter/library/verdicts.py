"""Why a file is not taken: a status and one sentence, passed up from the rules to `detection`."""

from __future__ import annotations

from dataclasses import dataclass

from .spec import Status


@dataclass(frozen=True)
class Verdict:
    """A file's end of the road: what it is or what is wrong, and what to do, in one sentence."""

    status: Status
    message: str
    kind: str = ""
    base: str = ""
    variant: str = ""
    encoder: tuple[str, ...] = ()
    decided_by: str = "shapes"


def damaged(what: str) -> Verdict:
    """A verdict of `unreadable`: `what` is a clause without a full stop."""
    return Verdict("unreadable", f"Damaged IP-Adapter file: {what}; download it again.")


def unsupported(sentence: str, base: str = "") -> Verdict:
    """A verdict of `unsupported`: `sentence` says what the file is and what to do."""
    return Verdict("unsupported", sentence, base=base)
