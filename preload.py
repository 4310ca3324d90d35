"""Command-line flags; the host runs this before anything of the extension is imported."""

from __future__ import annotations

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Add --ipadapter-dir."""
    parser.add_argument(
        "--ipadapter-dir",
        type=str,
        default=None,
        help="another folder with IP-Adapter and CLIP vision models, beside models/ipadapter",
    )
