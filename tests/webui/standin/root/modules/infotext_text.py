"""Infotext as text: quoting, parsing. Imported by `infotext_utils`, which adds the page's side."""

from __future__ import annotations

import json
import re

# A key is word characters, spaces, `-` and `/`; a value is a JSON string or runs to the next comma.
PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")


def quote(text):
    """A value with a comma, colon or line break becomes a JSON string; any other stays as it is."""
    if not any(mark in str(text) for mark in ",:\n"):
        return text
    return json.dumps(text, ensure_ascii=False)


def unquote(text: str):
    """The inverse of `quote`; what is no JSON string stays as it is."""
    if len(text) == 0 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _split_prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for raw in lines:
        line = raw.strip()
        if line.startswith("Negative prompt:"):
            current = negative
            line = line[16:].strip()
        current.append(line)
    return "\n".join(prompt), "\n".join(negative)


def parse_generation_parameters(x: str, skip_fields: list[str] | None = None) -> dict[str, object]:
    """Fields of an infotext; a value `WxH` under K becomes K-1 and K-2. The host's defaults are filled in."""
    *lines, last = x.strip().split("\n")
    if len(PARAM.findall(last)) < 3:
        lines.append(last)
        last = ""
    res: dict[str, object] = {}
    for key, raw in PARAM.findall(last):
        value = unquote(raw)
        size = SIZE.match(value) if isinstance(value, str) else None
        if size:
            res[f"{key}-1"], res[f"{key}-2"] = size.groups()
        else:
            res[key] = value
    res["Prompt"], res["Negative prompt"] = _split_prompts(lines)
    defaults = {"Clip skip": "1", "Hires resize-1": 0, "Hires resize-2": 0, "Hires sampler": "Use same sampler",
                "Hires checkpoint": "Use same checkpoint", "Hires prompt": "", "Hires negative prompt": "",
                "Mask mode": "Inpaint masked", "Masked content": "original", "Inpaint area": "Whole picture",
                "Masked area padding": 32, "RNG": "GPU", "Schedule type": "Automatic", "VAE Encoder": "Full",
                "VAE Decoder": "Full", "FP8 weight": "Disable", "Refiner switch by sampling steps": False}
    for key, value in defaults.items():
        res.setdefault(key, value)
    for key in skip_fields or []:
        res.pop(key, None)
    return res
