"""The plot's axes: one per field and unit, values on copies of a job without sharing state."""

from __future__ import annotations

import copy
import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_ipadapter.units.schema import axes


class AxisOption:
    """The plot script's class, with the arguments that it takes."""

    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):  # noqa: A002
        self.label, self.type, self.apply = label, type, apply
        self.confirm, self.choices = confirm, choices


@pytest.fixture
def plot(standin, monkeypatch):
    """The plot script's module, as the host's loader has it."""
    from modules import scripts

    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    data = SimpleNamespace(path="/webui/scripts/xyz_grid.py", module=module)
    monkeypatch.setattr(scripts, "scripts_data", [*scripts.scripts_data, data])
    return module


@pytest.fixture
def options(plot):
    """Our options by label, for two units."""
    from lib_ipadapter.webui import xyz

    xyz.add_axes(2, lambda: ["ip-adapter_sd15"])
    return {option.label: option for option in plot.axis_options if option.label != "Nothing"}


def test_each_axis_field_is_there_for_each_unit_once(plot, options):
    from lib_ipadapter.webui import xyz

    assert len(options) == 2 * len(axes())
    assert "[IP-Adapter] Unit 2 Weight" in options
    xyz.add_axes(2, list)
    assert len(plot.axis_options) == 1 + len(options)


def test_without_the_plot_script_nothing_happens(standin, monkeypatch):
    from modules import scripts

    from lib_ipadapter.webui import xyz

    monkeypatch.setattr(scripts, "scripts_data", [])
    xyz.add_axes(2, list)


def test_two_axes_on_shallow_copies_do_not_meet(options):
    from lib_ipadapter.webui import xyz

    p = SimpleNamespace()
    cells = []
    for weight in (0.0, 0.5):
        cell = copy.copy(p)
        options["[IP-Adapter] Unit 1 Weight"].apply(cell, weight, [])
        options["[IP-Adapter] Unit 2 Crop"].apply(cell, "pad", [])
        cells.append(xyz.values_of(cell))
    assert cells == [{(1, "weight"): 0.0, (2, "crop"): "pad"}, {(1, "weight"): 0.5, (2, "crop"): "pad"}]
    assert xyz.values_of(p) == {}


def test_a_copy_of_a_copy_keeps_what_its_origin_had(options):
    from lib_ipadapter.webui import xyz

    p = SimpleNamespace()
    options["[IP-Adapter] Unit 1 Weight"].apply(p, 1.0, [])
    cell = copy.copy(p)
    options["[IP-Adapter] Unit 1 Weight"].apply(cell, 2.0, [])
    assert xyz.values_of(p) == {(1, "weight"): 1.0}


def test_a_value_out_of_range_is_refused_before_the_first_cell(options):
    with pytest.raises(RuntimeError, match=r"Unit 1 Weight: weight is 9\.0; it must be a number from -1 to 3"):
        options["[IP-Adapter] Unit 1 Weight"].confirm(None, [0.5, 9.0])
    options["[IP-Adapter] Unit 1 Crop"].confirm(None, ["pad", "Tiles"])


def test_the_fields_of_a_face_are_axes(options):
    from lib_ipadapter.webui import xyz

    cell = SimpleNamespace()
    for label, value in (("Which face", "@0.25,0.5"), ("FaceID LoRA", 0.8), ("Face shape (Plus v2)", 2.0)):
        option = options[f"[IP-Adapter] Unit 2 {label}"]
        option.confirm(None, [value])
        option.apply(cell, option.type(value), [])
    assert xyz.values_of(cell) == {(2, "face"): "@0.25,0.5", (2, "lora"): 0.8, (2, "s_scale"): 2.0}
    with pytest.raises(RuntimeError, match="face is 'third'"):
        options["[IP-Adapter] Unit 1 Which face"].confirm(None, ["third"])
    assert "[IP-Adapter] Unit 1 Identity score" not in options


def test_the_points_that_the_readme_tells_to_plot_are_read_whole(options):
    """The plot splits its values as CSV (A1111, scripts/xyz_grid.py, csv_string_to_list_strip)."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    example = re.search(r"for \*Which face\* `([^`]+)`", readme)
    assert example
    (values,) = csv.reader([example[1]], skipinitialspace=True)
    assert values == ["largest", "2", "@0.31,0.42"]
    options["[IP-Adapter] Unit 1 Which face"].confirm(None, values)


def test_choices_are_offered_and_accepted(options):
    for option in options.values():
        if option.choices is not None:
            option.confirm(None, option.choices())
    assert options["[IP-Adapter] Unit 1 Adapter"].choices() == ["auto", "ip-adapter_sd15"]


def test_an_axis_may_bring_the_pictures_of_an_empty_unit(prompting, options):
    from lib_ipadapter.units.unit import Unit, page_values
    from lib_ipadapter.webui.script import read_request

    p = SimpleNamespace()
    args = tuple(page_values([Unit()], 2))
    options["[IP-Adapter] Unit 1 References"].apply(p, "sha256:" + "a" * 64, [])
    assert read_request(p, args).numbered[0][1].images == ("sha256:" + "a" * 64,)
    options["[IP-Adapter] Unit 2 Weight"].apply(p, 0.5, [])
    assert "unit 2, which does not run" in str(read_request(p, args))
