"""The HTML of a map of keypoints whose points can be moved.

`identity_part` draws with it; `javascript/ipadapter_keypoints.js` moves the points and writes them into the unit's
field.
"""

from __future__ import annotations

from html import escape

from ..encoders.keypoint_map import COLOURS, LIMBS
from .keypoint_looks import KeypointMap

NAMES = ("Eye on the left", "Eye on the right", "Nose", "Corner of the mouth on the left",
         "Corner of the mouth on the right")  # fmt: skip
"""Left and right in the picture, as the points are ordered."""


def editor_html(drawn: KeypointMap, name: str, *, given: bool) -> str:
    """A map, called `name`, with a handle on each of its points, and buttons; `given` points have a way back.

    Where it shows several people it is a picture only.
    """
    width, height = drawn.size
    caption = f"<figcaption>{escape(name)}, {width} &times; {height}</figcaption>"
    shape = f"--shape:{width / height:.4f}"
    if not drawn.points:
        return (
            f'<figure class="ipadapter-map-figure">{caption}<div class="ipadapter-map" '
            f'style="{shape}"><img src="{escape(drawn.source)}" alt="{escape(name)}"></div></figure>'
        )
    lines = "".join(_line(drawn, *limb) for limb in LIMBS)
    dots = "".join(_dot(drawn, place) for place in range(len(NAMES)))
    back = '<button type="button" class="ipadapter-map-reset">Back to photo</button>' if given else ""
    return (
        f'<figure class="ipadapter-map-figure">{caption}<div class="ipadapter-map" role="group" '
        f'aria-label="Keypoints: drag them, or move one with the arrow keys" '
        f'title="Drag a point to where it is to be" data-size="{width}x{height}" '
        f'style="{shape}"><img src="{escape(drawn.source)}" alt="{escape(name)}" '
        f'draggable="false"><svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'
        f'{dots}</div><div class="ipadapter-map-buttons"><button type="button" class="ipadapter-map-mirror" '
        f'title="Turn the face to the other side">Mirror</button>{back}</div></figure>'
    )


def _line(drawn: KeypointMap, start: int, end: int) -> str:
    (x1, y1), (x2, y2) = drawn.points[start], drawn.points[end]
    return (
        f'<line data-from="{start}" data-to="{end}" x1="{100 * x1:.2f}" y1="{100 * y1:.2f}" x2="{100 * x2:.2f}" '
        f'y2="{100 * y2:.2f}" stroke="{_colour(start)}"/>'
    )


def _dot(drawn: KeypointMap, place: int) -> str:
    x, y = drawn.points[place]
    return (
        f'<button type="button" class="ipadapter-dot" data-x="{x:.4f}" data-y="{y:.4f}" data-name="{NAMES[place]}" '
        f'aria-label="{NAMES[place]}, {x:.0%} across, {y:.0%} down" title="{NAMES[place]}" '
        f'style="left:{x:.2%};top:{y:.2%};--colour:{_colour(place)}"></button>'
    )


def _colour(place: int) -> str:
    return "rgb({} {} {})".format(*COLOURS[place])
