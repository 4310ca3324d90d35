"""What is known to help with InstantID, as sentences: said on the page under the adapter, never done unasked.

Sources: the official pipeline's defaults and infer.py (CFG 5, 30 steps, SDXL), and users' reports of the watermark that
pictures of 1024 pixels bring along from its training data.
"""

from __future__ import annotations

from .models import Choice

INSTANTID_ADVICE = (
    "InstantID looks best with CFG 4 to 5 and about 30 steps.",
    "At 1024 pixels a side it often paints a watermark: take 1016.",
)
PUBLISHED_BASE = "SDXL"


def instantid_advice(choice: Choice) -> tuple[str, ...]:
    """Sentences for a unit whose adapter is InstantID's; none for every other."""
    if choice.spec.kind != "instantid":
        return ()
    if choice.spec.base != PUBLISHED_BASE:
        return (*INSTANTID_ADVICE, "The published files are for SDXL; this pair is not one of them.")
    return INSTANTID_ADVICE
