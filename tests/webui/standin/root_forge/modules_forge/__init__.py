"""Forge's additions to the host's modules."""
