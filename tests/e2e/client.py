"""A client of the WebUI's API, for e2e tests: jobs in, pixels and infotexts out."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SECONDS = 600
SIDE = 64
"""Pixels of a side: the smallest picture that every host makes."""


@dataclass(frozen=True)
class Result:
    """An answer: `pictures` when `status` is 200, `detail`, the sentence, if not."""

    status: int
    pictures: tuple[Image.Image, ...]
    infotexts: tuple[str, ...]
    info: dict[str, Any]
    detail: str

    @property
    def images(self) -> np.ndarray | None:
        """`(n, height, width, 3)` as integers, of pictures that are all of one size; None where there are none."""
        if not self.pictures:
            return None
        return np.stack([np.asarray(picture.convert("RGB")).astype(int) for picture in self.pictures])


class Client:
    """Small, quick jobs on one WebUI; every job has a fixed seed."""

    def __init__(self, url: str, steps: int = 4) -> None:
        self.url = url.rstrip("/")
        self.steps = steps

    def request(self, path: str, body: Any = None) -> tuple[int, Any]:
        """GET, or POST with a body; the status and the JSON answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            return error.code, json.loads(text) if text.startswith(("{", "[")) else {"detail": text}

    @contextmanager
    def options(self, **values: Any) -> Iterator[None]:
        """Settings for a while. Not `override_settings`: hosts never restore keys that config.json lacks."""
        _, before = self.request("/sdapi/v1/options")
        self.request("/sdapi/v1/options", values)
        try:
            yield
        finally:
            self.request("/sdapi/v1/options", {key: before[key] for key in values if key in before})

    def txt2img(self, *units: Any, **changes: Any) -> Result:
        return self._job("/sdapi/v1/txt2img", units, changes)

    def img2img(self, *units: Any, **changes: Any) -> Result:
        changes.setdefault("init_images", [encoded(picture((90, 140, 60), (SIDE, SIDE)))])
        changes.setdefault("denoising_strength", 0.75)
        return self._job("/sdapi/v1/img2img", units, changes)

    def _job(self, path: str, units: tuple[Any, ...], changes: dict[str, Any]) -> Result:
        body: dict[str, Any] = {
            "prompt": "a cat in a garden", "steps": self.steps, "width": SIDE, "height": SIDE, "seed": 1,
            "cfg_scale": 5, "sampler_name": "Euler", "send_images": True, "save_images": False,
        }  # fmt: skip
        body |= changes
        if units:
            body["alwayson_scripts"] = {"IP-Adapter": {"args": list(units)}, **body.get("alwayson_scripts", {})}
        status, answer = self.request(path, body)
        if status != 200:
            return Result(status, (), (), {}, str(answer.get("detail") or answer))
        pictures = (Image.open(io.BytesIO(base64.b64decode(image.split(",")[-1]))) for image in answer["images"])
        info = json.loads(answer["info"])
        return Result(status, tuple(pictures), tuple(info["infotexts"]), info, "")


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A reference with a colour and a shape, not square and not symmetric."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:] = colour
    pixels[size[1] // 6 : size[1] // 2, size[0] // 5 : size[0] // 2] = [255 - value for value in colour]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG") -> str:
    """Base64 of the picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def claimed(result: Result, unit: int = 1) -> dict[str, Any]:
    """What the first picture's infotext says of a unit."""
    value = re.search(rf'IP-Adapter unit {unit}: ("(?:[^"\\]|\\.)*")', result.infotexts[0])
    assert value, result.infotexts[0]
    return json.loads(json.loads(value[1]))


def distance(a: Result, b: Result) -> float:
    """Mean difference of two results' pixels, 0..255. Fails when either has none or their shapes differ."""
    assert a.images is not None, a.detail
    assert b.images is not None, b.detail
    assert a.images.shape == b.images.shape
    return float(np.abs(a.images - b.images).mean())
