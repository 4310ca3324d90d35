"""Options shared by all tests."""

from __future__ import annotations

import os

import pytest

# Small nets gain nothing from threads, and lose much where tests run beside each other. Torch reads this when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui",
        metavar="URL",
        default=None,
        help="run tests/e2e against this running WebUI (with --api, the extension, and the files of "
        "tests/sample_models.py for its checkpoint) instead of the stand-in",
    )
