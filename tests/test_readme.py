"""The README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from lib_ipadapter.units.schema import markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_table_of_fields_is_the_list_of_fields():
    text = README.read_text(encoding="utf-8")
    between = re.search(r"<!-- fields:begin -->\n(.*)<!-- fields:end -->", text, re.DOTALL)
    assert between, "the README has no place for the table of fields"
    assert between[1].strip() == markdown_table().strip()
