"""The stand-in host as a process of its own, with small models that fit its checkpoint; started by `conftest`.

`python -m tests.e2e.serving FOLDER` prints the address and serves until it is ended.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.sample_models import write_sample_models
from tests.webui.standin import StandIn

REPOSITORY = Path(__file__).resolve().parents[2]
ANNOUNCEMENT = "serving on "


def main(folder: Path) -> None:
    """Serve a host whose data is in `folder`."""
    host = StandIn(extensions=[REPOSITORY], data_dir=folder, argv=("--api",))
    write_sample_models(host.checkpoint_dir / "sd15.safetensors", folder / "models" / "ipadapter")
    print(ANNOUNCEMENT + host.serve(), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
