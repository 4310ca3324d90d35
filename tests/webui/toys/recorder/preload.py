"""Adds a flag to the host's command line."""

from tests.webui.toys.record import record


def preload(parser):
    """Called before the command line is read."""
    record.preloaded.append(parser)
    parser.add_argument("--toy-flag", default="not given")
