"""`python -m tests.webui.standin`: the host as a server on 127.0.0.1, until Ctrl+C.

Flags that are not listed here go to the host's own command line (`--api-auth user:password`, `--ckpt-dir`, and what
extensions add in preload.py).
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from tests.webui.standin import StandIn, installed_flavour
from tests.webui.standin.launching import FLAVOURS


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags and the rest."""
    parser = argparse.ArgumentParser(prog="python -m tests.webui.standin", description=__doc__, allow_abbrev=False)
    parser.add_argument("--flavour", choices=FLAVOURS, default=None, help="whose names and rules (default: by gradio)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--extension", type=Path, action="append", default=[], help="an extension's folder; repeatable")
    parser.add_argument("--checkpoint-dir", type=Path, default=None, help="a folder with more checkpoints")
    parser.add_argument("--checkpoint", action="append", default=None, help="make one of this kind (default: sd15)")
    parser.add_argument("--sample-models", action="store_true", help="write adapters and an encoder that fit them")
    parser.add_argument("--data-dir", type=Path, default=Path("out/standin"), help="models, settings and pictures")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Start, say where, and serve."""
    try:
        serve(*parse(argv))
    except KeyboardInterrupt:
        return


def serve(own: argparse.Namespace, rest: list[str]) -> None:
    """Serve what the flags say. Raises: KeyboardInterrupt when it was ended, and has ended."""
    flavour = own.flavour or installed_flavour()
    if flavour != installed_flavour():
        raise SystemExit(f"the installed gradio belongs to {installed_flavour()}, not to {flavour}")
    if own.checkpoint_dir is not None:
        rest = [*rest, "--ckpt-dir", str(own.checkpoint_dir)]
    checkpoints = tuple(own.checkpoint or ("sd15",))
    host = StandIn(flavour, own.extension, own.data_dir, rest, checkpoints)
    if own.sample_models:
        # Ours, so not imported before the host has loaded its extensions, and not at all for others.
        from tests.sample_models import write_sample_models

        for name in checkpoints:
            write_sample_models(host.checkpoint_dir / f"{name}.safetensors", host.data_dir / "models" / "ipadapter")
    print(f"serving on {host.serve(own.port)}", flush=True)
    try:
        threading.Event().wait()
    finally:
        host.stop_serving()


if __name__ == "__main__":
    main()
