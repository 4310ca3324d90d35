"""What is known to help with InstantID: said on the page as chips that apply on a click, never done unasked.

`webui.page` asks for it and `javascript/ipadapter_advice.js` compares it with what the host's own fields hold.

Sources: the official demo's defaults (InstantX/InstantID, gradio_demo: CFG 5, 30 steps, SDXL; with an LCM LoRA CFG 0 to
1.5 and 5 steps) and ComfyUI_InstantID's README (CFG 4 to 5; 1016 pixels, because the watermarks of the training data
come with the sizes of the training). The sizes are SDXL's own buckets (Podell et al. 2023, appendix I, the usual nine).
"""

from __future__ import annotations

from typing import NamedTuple

PUBLISHED_BASE = "SDXL"
TRAINED_SIDE = 1024
LESS = 8
"""Pixels that a side gives up to leave the size of the training: the hosts' smallest step."""
BUCKETS = ((1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640))


class Range(NamedTuple):
    """A field of the host that is well from `low` to `high`, and `value`, which the chip sets."""

    field: str
    name: str
    low: float
    high: float | None
    value: float
    label: str
    why: str


class Sizes(NamedTuple):
    """Sizes of the picture to leave: any with a side of `side`, and those of `sizes`, by `less` pixels a side."""

    side: int
    sizes: tuple[tuple[int, int], ...]
    less: int
    why: str


class Advice(NamedTuple):
    """What a unit's chips are made from. `fast` are values of the host's fields up to which a job is a distilled
    model's (LCM, Turbo, Lightning), to which the ranges do not apply; `plain` is said without anything to click.
    """

    ranges: tuple[Range, ...] = ()
    sizes: Sizes | None = None
    fast: tuple[tuple[str, float], ...] = ()
    plain: tuple[tuple[str, str], ...] = ()


NO_ADVICE = Advice()


def instantid_advice(base: str) -> Advice:
    """For a unit that runs InstantID on a checkpoint of this base; an empty string is a base that is not known yet."""
    ranges = (
        Range("cfg_scale", "CFG Scale", 4.0, 5.0, 4.5, "CFG 4.5", "InstantID burns at a higher CFG; 4 to 5 suit it."),
        Range("steps", "Sampling steps", 30, None, 30, "30 steps", "The official InstantID takes 30 steps."),
    )
    mirrored = tuple((height, width) for width, height in BUCKETS if width != height)
    why = "At the sizes of its training InstantID often paints a watermark."
    sizes = Sizes(TRAINED_SIDE, BUCKETS + mirrored, LESS, why)
    other = base not in ("", PUBLISHED_BASE)
    plain = ("SDXL checkpoint", "The published InstantID files are for SDXL and cannot fit this one.")
    return Advice(ranges, sizes, (("cfg_scale", 2.0), ("steps", 12)), (plain,) if other else ())
