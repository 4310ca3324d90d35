"""Options shared by all tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui",
        metavar="URL",
        default=None,
        help="run tests/e2e against this running WebUI (with --api, the extension, and the files of "
        "tests/sample_models.py for its checkpoint) instead of the stand-in",
    )
