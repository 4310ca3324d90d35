"""What is said to help with InstantID, and for whom."""

from __future__ import annotations

from pathlib import Path

from lib_ipadapter.library.spec import AdapterSpec, Base, Kind, ProjectorSpec
from lib_ipadapter.session.advice import instantid_advice
from lib_ipadapter.session.models import Choice


def choice(kind: Kind, base: Base) -> Choice:
    projector = ProjectorSpec("resampler", 16, 512, 2048)
    spec = AdapterSpec(kind, kind, base, 16, ("antelopev2",), "face_raw", 2048, {}, projector)
    return Choice("a.bin", Path("a.bin"), spec, "0")


def test_advice_is_for_instantid_alone_and_names_what_the_files_were_made_for() -> None:
    said = " ".join(instantid_advice(choice("instantid", "SDXL")))
    assert all(words in said for words in ("CFG 4 to 5", "30 steps", "1016"))
    assert "SDXL" in " ".join(instantid_advice(choice("instantid", "SD1")))
    assert instantid_advice(choice("faceid", "SDXL")) == ()
