"""Two units of sd-webui-controlnet for the halves of InstantID: names, places, making. Used by `a1111_controlnet`.

Sources: sd-webui-controlnet 1.1.455, internal_controlnet/external_code.py (the external API) and args.py (units).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..library.errors import IdentityNetError, UnsupportedHostStateError
from .extension_nets import ExtensionPair

API = "internal_controlnet.external_code"
MARK = "instant_id"
"""What the extension wants in the path of both halves (controlnet_model_guess.py, ipadapter_model.py)."""
UNITS = 2
WIDTHS = {(320, 640, 1280, 1280), (320, 640, 1280)}
HINT_WIDTHS = (16, 32, 96, 256)
BUILT_IN = "or set the unit to run IdentityNet built-in"


def find_extension(p: Any) -> tuple[Any, Any]:
    """The external API and the job's ControlNet script. Raises: UnsupportedHostStateError without the extension."""
    api = sys.modules.get(API)
    script = api.find_cn_script(p.scripts) if api is not None else None
    if api is None or script is None:
        raise UnsupportedHostStateError(
            "The ControlNet extension (sd-webui-controlnet) is not installed or is switched off: install it, "
            f"{BUILT_IN}."
        )
    return api, script


def check_batch_option(script: Any) -> None:
    """Raises: UnsupportedHostStateError where each picture of a batch has a unit of its own."""
    if str(script.ui_batch_option_state[0]).startswith("Each"):
        raise UnsupportedHostStateError(
            "The ControlNet extension's batch option gives each picture of a batch a unit of its own, so IdentityNet "
            f"would act in some only: set it to all units for all images, {BUILT_IN}."
        )


def check_widths(pair: ExtensionPair) -> None:
    """The extension builds nets of the published sizes only (controlnet_model_guess.py). Raises."""
    spec = pair.spec
    usual = spec.channels in WIDTHS and spec.hint_widths == HINT_WIDTHS
    if not usual or (not spec.y_dim and set(spec.heads) != {8}):
        raise UnsupportedHostStateError(
            f"{pair.net.name} has levels of {'-'.join(map(str, spec.channels))} channels, and the ControlNet extension "
            f"builds the sizes of SD1.5 and SDXL only: use another file, {BUILT_IN}."
        )


def name_of(api: Any, path: Path, what: str) -> str:
    """What the extension calls a file. Raises: IdentityNetError where it does not list it, or reads it as another."""
    name = _listed(api, path)
    if name is None:
        api.get_models(update=True)
        name = _listed(api, path)
    if name is None:
        raise IdentityNetError(
            f"The ControlNet extension does not list InstantID's {what} {path.name}: put it into models/ControlNet "
            f"under a name with '{MARK}' in it (a link will do), {BUILT_IN}."
        )
    found = str(api.global_state.cn_models[name])
    # The adapter's test minds the case and puts PuLID first, the ControlNet's does neither.
    marked = MARK in (found.lower() if what == "ControlNet" else found)
    if not marked or (what == "adapter" and "pulid" in found.lower()):
        raise IdentityNetError(
            f"The ControlNet extension tells InstantID's {what} by '{MARK}' in its path and reads {path.name} as "
            f"something else: rename the file so that it has '{MARK}' and no 'pulid' in it, {BUILT_IN}."
        )
    return name


def _listed(api: Any, path: Path) -> str | None:
    wanted = path.resolve()
    models = api.global_state.cn_models
    return next((name for name, file in models.items() if file and Path(file).resolve() == wanted), None)


def free_place(given: Sequence[Any], count: int) -> int:
    """The last two neighbouring places that are switched off. Raises: UnsupportedHostStateError."""
    if count > len(given):
        raise UnsupportedHostStateError(
            f"The ControlNet extension is set to {count} units and the page has {len(given)}: reload the UI, "
            f"{BUILT_IN}."
        )
    free = [place for place in range(count) if not _is_enabled(given[place])]
    found = [place for place in free if place + 1 in free]
    if not found:
        raise UnsupportedHostStateError(
            f"IdentityNet takes {UNITS} neighbouring units of the ControlNet extension and {count - len(free)} of its "
            f"{count} are in use: raise Settings > ControlNet > ControlNet unit number and reload the UI, {BUILT_IN}."
        )
    return found[-1]


def _is_enabled(unit: Any) -> bool:
    return bool(unit.get("enabled") if isinstance(unit, dict) else getattr(unit, "enabled", False))


def make_units(api: Any, names: Sequence[str], p: Any) -> list[Any]:
    """An ip-adapter of weight 0 with a zero embedding, and the net with a black map of the job's size."""
    import numpy as np

    adapter = api.ControlNetUnit(enabled=True, module="none", model=names[0], weight=0.0)
    adapter.ipadapter_input = [torch.zeros(1, 512)]
    black = np.zeros((p.height, p.width, 3), np.uint8)
    net = api.ControlNetUnit(
        enabled=True,
        module="none",
        model=names[1],
        image=black,
        resize_mode="Just Resize",
        inpaint_crop_input_image=False,
        save_detected_map=False,
    )
    return [adapter, net]


def forget_infotext(p: Any, ours: Sequence[str]) -> None:
    """The infotext tells of our unit, and pasted would fill the user's ControlNet units too: the others move up."""
    params = p.extra_generation_params
    told = [key for key in params if key.startswith("ControlNet ") and key.removeprefix("ControlNet ").isdigit()]
    texts = [params.pop(key) for key in sorted(told, key=lambda key: int(key.removeprefix("ControlNet ")))]
    for number, text in enumerate(text for text in texts if text not in ours):
        params[f"ControlNet {number}"] = text
