"""Drawn keypoint maps beside a job's results, for people and for programs. `session.job` puts them there at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

TITLE = "IP-Adapter keypoints"


def show_maps(processed: Any, maps: Mapping[str, Image.Image]) -> None:
    """Append maps, by what they are called, to a result's pictures; the page's gallery and the API show them last.

    Pictures that no job made have no infotext of their own: each map's says what it is.
    """
    for name, picture in maps.items():
        text = f"{TITLE}: {name}"
        shown = picture.copy()
        shown.info["parameters"] = text
        processed.images.append(shown)
        processed.infotexts.append(text)
