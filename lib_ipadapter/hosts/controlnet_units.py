"""What a job's own ControlNet units run, by the names of their models; `session.identity` warns with it.

Source: sd-webui-controlnet and Forge's sd_forge_controlnet: an always-on script titled "ControlNet" whose arguments are
units with `enabled` and `model`, objects from the page and dicts from programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

TITLE = "controlnet"


def enabled_models(p: Any) -> list[str]:
    """The models of the ControlNet units that are switched on in the job `p`; none without the extension."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ()
    script = next((one for one in scripts if _title(one) == TITLE), None)
    if script is None:
        return []
    given = list(getattr(p, "script_args", None) or ())[script.args_from : script.args_to]
    return [str(_value(unit, "model")) for unit in given if _value(unit, "enabled") and _value(unit, "model")]


def _title(script: Any) -> str:
    title = getattr(script, "title", None)
    return str(title()).lower() if callable(title) else ""


def _value(unit: Any, name: str) -> Any:
    if isinstance(unit, Mapping):
        return cast("Mapping[str, Any]", unit).get(name)
    return getattr(unit, name, None)
