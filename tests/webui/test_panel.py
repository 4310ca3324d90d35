"""The accordion as the host gets it: its inputs, its names, its independence of how often it is built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lib_ipadapter.session.advice import Advice, instantid_advice
from lib_ipadapter.units.fields import FIELDS, IMAGES
from lib_ipadapter.units.images import ImageStore
from lib_ipadapter.units.unit import Unit, page_values, parse_args
from lib_ipadapter.webui.face_html import FacePreview
from lib_ipadapter.webui.face_looks import FacePicture
from lib_ipadapter.webui.keypoint_looks import KeypointMap, MapLayout
from lib_ipadapter.webui.looks import Looks

UNITS = 3


class FixedServices:
    """Services that answer without a host; `asked` lists what the page asked for."""

    def __init__(self, store: ImageStore, inline: bool = False) -> None:
        self._store, self._inline = store, inline
        self._looks = Looks()
        self.asked: list[str] = []

    def store(self) -> ImageStore:
        self.asked.append("store")
        return self._store

    def looks(self) -> Looks:
        return self._looks

    def inline_references(self) -> bool:
        return self._inline

    def adapter_names(self) -> list[tuple[str, str]]:
        self.asked.append("adapter_names")
        return [("ip-adapter_sd15", "base"), ("ip-adapter-plus_sd15", "plus")]

    def refresh_models(self) -> None:
        self.asked.append("refresh_models")

    def controlnet_names(self) -> list[str]:
        return ["control_instant_id_sdxl.safetensors"]

    def is_instantid(self, adapter: str, intent: str) -> bool:
        return intent == "instantid"

    def keypoint_map(self, photo, adapter: str, intent: str, layout: MapLayout, *, analyse: bool) -> KeypointMap:
        self.asked.append(f"map of {photo[1]}, face {photo[2]}")
        return KeypointMap(pending=1)

    def explain(self, adapter: str, intent: str, identity_net: str) -> list[str]:
        self.asked.append("explain")
        return [f"{adapter} for {intent}", "More <of> it"]

    def advice(self) -> Advice:
        return instantid_advice("SD1")

    def knows_identity(self, adapter: str, intent: str) -> bool:
        return intent == "face" or "faceid" in adapter

    def faces(self, references, adapter: str, intent: str, *, analyse: bool) -> FacePreview:
        self.asked.append("faces")
        return FacePreview([FacePicture(reference, name) for reference, name, _ in references])

    def preview(self, references, crop: str, adapter: str, intent: str) -> list[tuple[Image.Image, ...]]:
        self.asked.append("preview")
        return [(Image.new("RGB", (8, 8), (10, 20, number)),) for number, _ in enumerate(references)]

    def host_notice(self) -> str:
        return "This host is <too> old."


@pytest.fixture
def services(tmp_path):
    return FixedServices(ImageStore(tmp_path / "store", 10**7))


@pytest.fixture
def build(standin, services):
    """Build a panel in a page of its own."""
    import gradio as gr

    from lib_ipadapter.webui.panel import build_panel

    def build(tab: str = "txt2img", max_units: int = UNITS):
        with gr.Blocks(analytics_enabled=False):
            return build_panel(tab=tab, max_units=max_units, services=services)

    return build


def classes_around(component) -> list[str]:
    """The classes of what a component lies in."""
    if component.parent is None:
        return []
    return [*(component.parent.elem_classes or ()), *classes_around(component.parent)]


def values_of(panel) -> list[object]:
    return [component.value for component in panel.inputs]


def test_inputs_are_the_switch_and_every_field_of_every_unit_in_order(build):
    panel = build()
    ids = [component.elem_id for component in panel.inputs[1:]]
    assert ids == [f"txt2img_ipadapter_unit{unit}_{spec.name}" for unit in range(1, UNITS + 1) for spec in FIELDS]
    assert len(panel.inputs) == 1 + UNITS * len(FIELDS)


def test_untouched_values_mean_off_and_the_default_unit(build):
    values = values_of(build())
    assert values[0] is False
    assert parse_args(values, UNITS).numbered == ()
    assert parse_args([True, *values[1:]], UNITS).units == (Unit(),) * UNITS


def test_values_are_json_scalars(build):
    assert all(isinstance(value, (bool, int, float, str)) for value in values_of(build()))
    json.dumps(values_of(build()))


def test_sliders_and_lists_offer_what_the_field_accepts(build):
    components = dict(zip([spec.name for spec in FIELDS], build().inputs[1:], strict=False))
    for spec in FIELDS:
        component = components[spec.name]
        if spec.kind == "number":
            assert (component.minimum, component.maximum, component.step) == (spec.minimum, spec.maximum, spec.step)
        if spec.kind == "choice":
            labels = [choice if isinstance(choice, str) else choice[0] for choice in component.choices]
            assert [spec.parse(label) for label in labels] == [value for value, _ in spec.choices]


def test_building_asks_nothing_and_keeps_nothing(build, services):
    first, second = build(), build()
    assert services.asked == []
    assert not set(map(id, first.inputs)) & set(map(id, second.inputs))
    assert values_of(first) == values_of(second)


def test_tabs_name_the_same_fields_alike(build):
    txt2img, img2img = build("txt2img"), build("img2img")
    sent = [name for _, name in txt2img.infotext_fields if name in txt2img.paste_field_names]
    received = [name for _, name in img2img.infotext_fields if name in txt2img.paste_field_names]
    assert sent == received
    assert len(sent) == len(txt2img.inputs)
    assert not set(txt2img.paste_field_names) & {"Prompt", "Steps"}


def test_nothing_is_frozen_in_the_hosts_list_of_defaults(build):
    assert all(component.do_not_save_to_config for component in build().inputs[1:])


def test_an_adapter_outside_the_list_survives_the_page(build):
    adapter = next(one for one in build().inputs if (one.elem_id or "").endswith("unit1_adapter"))
    assert adapter.preprocess("pasted <name>, elsewhere") == "pasted <name>, elsewhere"
    assert adapter.allow_custom_value


@pytest.mark.parametrize("text", ["Left third", "Face", "Everywhere", "0.1,0.2,0.3,0.4", "sha256:" + "a" * 64])
def test_a_region_is_chosen_or_typed(build, text):
    values, inputs = values_of(build()), build().inputs
    place = next(place for place, one in enumerate(inputs) if (one.elem_id or "").endswith("unit1_region"))
    assert values[place] == "Auto"
    values[place] = inputs[place].preprocess(text)
    assert parse_args([True, *values[1:]], UNITS).units[0].region == text.lower()


def test_pasted_units_come_back_through_the_page(build):
    from lib_ipadapter.units.infotext import infotext_key, unit_to_infotext

    panel = build()
    units = {
        1: Unit(weight=0.35, adapter='odd "name", with: signs', crop="pad", images=("sha256:" + "a" * 64,)),
        2: Unit(
            region="0.1,0.25,0.4,0.5", feather=0.15,
            intent="face", face="@0.31,0.42; 2", lora=0.85, s_scale=1.5, score=True, combine="mean",
            images=("sha256:" + "c" * 64, "sha256:" + "d" * 64),
        ),
        3: Unit(
            region="sha256:" + "e" * 64,
            intent="style_composition", start=0.2, end=0.7, combine="average", images=("sha256:" + "b" * 64,),
        ),
    }
    params = {infotext_key(number): unit_to_infotext(unit, unit.images, {}) for number, unit in units.items()}
    values = []
    pastes = {id(component): paste for component, paste in panel.infotext_fields}
    for component in panel.inputs:
        pasted = pastes[id(component)](params)
        # As the host does it: nothing for None, else through the type of the component's value.
        values.append(component.value if pasted is None else type(component.value)(pasted))
    assert dict(parse_args(values, UNITS).numbered) == units


def test_a_unit_that_the_infotext_lacks_is_switched_off(build):
    from lib_ipadapter.units.infotext import infotext_key, unit_to_infotext

    unit = Unit(images=("sha256:" + "a" * 64,))
    params = {infotext_key(2): unit_to_infotext(unit, unit.images, {})}
    pastes = [paste for component, paste in build().infotext_fields if str(component.elem_id).endswith("enabled")]
    enabled = [paste(params) for paste in pastes]
    assert enabled == [False, True, False]


def test_the_fields_of_a_face_travel_though_they_are_shown_to_faces_alone(build):
    names = [component.elem_id.rpartition("unit1_")[2] for component in build().inputs[1 : 1 + len(FIELDS)]]
    assert {"face", "lora", "s_scale", "score"} <= set(names)
    face = build().inputs[1 + names.index("face")]
    assert (face.value, face.visible) == ("largest", True)


def test_what_means_something_to_every_unit_is_in_no_row_that_is_hidden(build):
    """Which fields the style sheet hides with their row in units without faces."""
    style = (Path(__file__).resolve().parents[2] / "style.css").read_text(encoding="utf-8")
    hidden = set(re.findall(r":not\(\.ipadapter-with-faces\) \.(ipadapter-row-\w+)", style))
    gone = [
        component.elem_id.rpartition("unit1_")[2]
        for component in build().inputs[1 : 1 + len(FIELDS)]
        if hidden & set(classes_around(component))
    ]
    assert gone == ["face", "lora", "s_scale"]


def test_an_infotext_without_us_switches_off_and_touches_no_unit(build):
    pasted = [paste({"Steps": "20"}) for _, paste in build().infotext_fields]
    assert pasted[0] is False
    assert all(value is None for value in pasted[1:-1])


def test_what_cannot_be_pasted_is_said(build):
    note = build(max_units=1).infotext_fields[-1][1]
    sentence = note({"IP-Adapter unit 1": '{"weight":99}', "IP-Adapter unit 4": "{}"})
    assert "weight is 99" in sentence
    assert "used unit 4, and this page has 1" in sentence
    assert "<b>" not in note({"IP-Adapter unit 1": '{"<b>":1}'})


def test_page_values_fit_the_inputs(build):
    unit = Unit(images=("sha256:" + "c" * 64,))
    assert len(page_values([unit], UNITS)) == len(build().inputs)
    assert IMAGES.parse(page_values([unit], UNITS)[1 + [spec.name for spec in FIELDS].index("images")]) == unit.images
