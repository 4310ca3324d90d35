"""One vocabulary for every way an adapter's tensors are named; `detection` calls it before it looks at shapes.

Official names are `image_proj.<name>` and `ip_adapter.<id>.<name>`, flat (tencent-ailab/IP-Adapter). Training
checkpoints write `image_proj_model.` and `adapter_modules.`, accelerate writes the UNet's own paths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from .attention_ids import Family, attention_ids
from .spec import TensorInfo

PROJECTOR = "image_proj."
ATTENTION = "ip_adapter."
_TRAINING = {PROJECTOR: "image_proj_model.", ATTENTION: "adapter_modules."}
_WRAPPERS = ("state_dict.", "module.", "model.")
_PROCESSOR = re.compile(
    r"^(?:unet\.)?((?:down_blocks|up_blocks|mid_block)\..+\.attn[12])\.processor\.(to_\w+?_(?:ip|lora)\..+)$"
)


class AdapterNames(NamedTuple):
    """An adapter's two parts, by official names without their prefix, and where each tensor is in the file.

    `projector` and `attention` map `proj.weight`, `1.to_k_ip.weight` to their records; `tensors` maps whole official
    names to the names in the file. Either part may be empty.
    """

    projector: dict[str, TensorInfo]
    attention: dict[str, TensorInfo]
    tensors: dict[str, str]


def normalise(tensors: Mapping[str, TensorInfo]) -> AdapterNames:
    """Translate a file's names to the official ones; where a tensor is there under both, the official name wins."""
    wrapper = _wrapper(tensors)
    found: dict[str, str] = {}
    for official, training in _TRAINING.items():
        for prefix in (official, training):
            full = wrapper + prefix
            part = {official + name[len(full) :]: name for name in tensors if name.startswith(full)}
            if part:
                found.update(part)
                break
    if not any(name.startswith(ATTENTION) for name in found):
        found.update(_from_unet_paths(tensors, wrapper))
    projector = {name[len(PROJECTOR) :]: tensors[at] for name, at in found.items() if name.startswith(PROJECTOR)}
    attention = {name[len(ATTENTION) :]: tensors[at] for name, at in found.items() if name.startswith(ATTENTION)}
    return AdapterNames(projector, attention, found)


def _wrapper(names: Collection[str]) -> str:
    """The wrappers around every name (`state_dict.`, `module.`, `model.`, nested as well), "" without one."""
    if not next(iter(names), "").startswith(_WRAPPERS):
        return ""
    # What the first and the last in alphabetical order begin with, all between them begin with.
    first, last = min(names), max(names)
    length = 0
    while True:
        step = next((w for w in _WRAPPERS if first.startswith(w, length) and last.startswith(w, length)), None)
        if step is None:
            return first[:length]
        length += len(step)


def strip_wrappers(names: Iterable[str]) -> list[str]:
    """The names without what wraps all of them; `model.` stays, since checkpoints' own names begin with it."""
    listed = list(names)
    wrapper = _wrapper(listed)
    while wrapper.endswith("model."):
        wrapper = wrapper[: -len("model.")]
    return [name[len(wrapper) :] for name in listed]


def _from_unet_paths(tensors: Mapping[str, TensorInfo], wrapper: str) -> dict[str, str]:
    """Translate `unet.<path>.attn2.processor.to_k_ip.weight` through the order of attention processors."""
    if not any(".processor.to_k_ip.weight" in name for name in tensors):
        return {}
    matches: list[tuple[str, str, str]] = []
    for name in tensors:
        match = _PROCESSOR.match(name[len(wrapper) :])
        if match is not None:
            matches.append((name, match[1], match[2]))
    family: Family = "SD"
    if not any(path.startswith(("down_blocks.0.", "up_blocks.3.")) for _, path, _ in matches):
        family = "SDXL"
    ids = attention_ids(family)
    return {f"{ATTENTION}{ids[path]}.{rest}": name for name, path, rest in matches if path in ids}
