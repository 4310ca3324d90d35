"""The stand-in host as a process of its own, with small models that fit its checkpoint; started by `conftest`.

`python -m tests.e2e.serving FOLDER` prints the address and serves until it is ended: what `dev.py serve` does, in
FOLDER and on a free port.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.webui.standin.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
ANNOUNCEMENT = "serving on "

if __name__ == "__main__":
    main(["--extension", str(REPOSITORY), "--data-dir", sys.argv[1], "--sample-models", "--api"])
