"""Layers that the memory manager can swap: on the CPU torch's own, noted while the context is open."""

from __future__ import annotations

import contextlib

built_with: list[dict[str, object]] = []


@contextlib.contextmanager
def using_forge_operations(operations=None, device=None, dtype=None, manual_cast_enabled=False, bnb_dtype=None):
    """The context in which nets are built."""
    del operations, bnb_dtype
    built_with.append({"device": device, "dtype": dtype, "manual_cast_enabled": manual_cast_enabled})
    yield
