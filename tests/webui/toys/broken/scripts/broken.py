"""A script that cannot be loaded: the host reports it and goes on."""

raise ImportError("told to fail while loading")
