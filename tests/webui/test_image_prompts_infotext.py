"""What a picture says of its units, through the host's own parser and back into the page's arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_ipadapter.units.unit import Request, parse_args
from tests.webui.prompting import BLUE, RED, Prompting


def stored(prompting: Prompting, picture: str) -> str:
    """Put a picture into the store, as the page does at an upload."""
    import base64

    from lib_ipadapter.webui.process import image_store

    return image_store().put(base64.b64decode(picture))


def pasted_arguments(infotext: str) -> list[Any]:
    """The script's arguments after the host pasted the infotext into the txt2img tab."""
    from modules import infotext_utils, scripts

    script = next(script for script in scripts.scripts_txt2img.scripts if script.title() == "IP-Adapter")
    params = infotext_utils.parse_generation_parameters(infotext)
    values = {id(control): control.value for control in script.controls}
    for component, target in infotext_utils.paste_fields["txt2img"]["fields"]:
        if id(component) not in values:
            continue
        update = infotext_utils._value(component, target, params)
        if "value" in update:
            values[id(component)] = update["value"]
    return [values[id(control)] for control in script.controls]


def units_of(request: Request) -> list[Any]:
    return [unit.to_dict() for _, unit in request.numbered]


def test_a_picture_can_be_made_again_from_its_infotext(prompting: Prompting) -> None:
    red, blue = stored(prompting, RED), stored(prompting, BLUE)
    units = [
        {"images": [red], "weight": 0.65, "start": 0.25, "crop": "pad", "intent": "style"},
        {"images": [blue, red], "combine": "average", "adapter": "ip-adapter_sd15.safetensors", "uncond": "black"},
    ]
    first = prompting.run(*units)
    args = pasted_arguments(first.infotexts[0])
    assert args[0] is True
    from lib_ipadapter.webui import settings

    request, sent = (parse_args(form, settings.max_units()) for form in (args, units))
    assert units_of(request) == units_of(sent)
    again = prompting.run(*args)
    assert again.pixels == first.pixels
    assert again.infotexts == first.infotexts


def test_pasting_a_picture_without_units_switches_nothing_on(prompting: Prompting) -> None:
    assert pasted_arguments(prompting.run().infotexts[0])[0] is False


def test_units_keep_their_numbers(prompting: Prompting) -> None:
    red = stored(prompting, RED)
    result = prompting.run({"images": [red], "enabled": False}, {"images": [red], "weight": 0.5})
    from lib_ipadapter.webui import settings

    request = parse_args(pasted_arguments(result.infotexts[0]), settings.max_units())
    assert [number for number, _ in request.numbered] == [2]


def test_the_apis_infotext_sets_the_units(prompting: Prompting) -> None:
    if prompting.is_forge:
        pytest.skip("Forge fails at any infotext sent to its API")
    red = stored(prompting, RED)
    first = prompting.run({"images": [red], "weight": 0.7})
    assert prompting.run(infotext=first.infotexts[0]).pixels == first.pixels


def test_a_hostile_name_survives_the_way_through_the_infotext(prompting: Prompting) -> None:
    folder = prompting.standin.data_dir / "models" / "ipadapter"
    hostile = folder / 'a, "b" Steps_ 9 <lora_x_1> 640x480 ü.safetensors'
    hostile.write_bytes((folder / "ip-adapter_sd15.safetensors").read_bytes())
    try:
        red = stored(prompting, RED)
        first = prompting.run({"images": [red], "adapter": hostile.name})
        args = pasted_arguments(first.infotexts[0])
        assert prompting.run(*args).pixels == first.pixels
        assert first.info["extra_generation_params"].keys() >= {"IP-Adapter unit 1"}
    finally:
        hostile.unlink()


def test_a_picture_sent_inline_is_named_by_its_digest_alone(prompting: Prompting) -> None:
    from modules.infotext_utils import parse_generation_parameters

    infotext = prompting.run({"images": [RED]}).infotexts[0]
    assert RED[:60] not in infotext
    said = json.loads(parse_generation_parameters(infotext)["IP-Adapter unit 1"])
    assert [len(digest) for digest in said["refs"]] == [64]


def test_the_prompt_history_has_the_units_before_they_ran(prompting: Prompting) -> None:
    """A1111 writes params.txt right after `process`."""
    from modules import scripts

    runner = scripts.scripts_txt2img
    process, seen = runner.process, []

    def noting(p: Any) -> None:
        process(p)
        seen.append(dict(p.extra_generation_params))

    prompting.patch.setattr(runner, "process", noting)
    red = stored(prompting, RED)
    prompting.run({"images": [red], "weight": 0.7})
    assert json.loads(seen[0]["IP-Adapter unit 1"])["weight"] == 0.7
    assert "IP-Adapter unit 1" not in prompting.run({"images": [red], "weight": 0.0}).infotexts[0]
