"""Results kept between jobs: encoder features and projected keys and values, by what went into them.

One `ResultCache` for the process, owned by `webui.process`; bounded in bytes, least recently used out first.
Tensors in it lie on the CPU and are never written to.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Value = TypeVar("Value")


class ResultCache:
    """A bounded map from what a result was made of to the result."""

    def __init__(self, cap_bytes: int) -> None:
        self._cap = cap_bytes
        self._held = 0
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes held now; never more than the cap."""
        return self._held

    @property
    def cap_bytes(self) -> int:
        """The bound; 0 where nothing is kept."""
        return self._cap

    def set_cap(self, cap_bytes: int) -> None:
        """Change the bound; what no longer fits is dropped at once."""
        with self._lock:
            self._cap = cap_bytes
            self._trim()

    def get(self, key: Hashable, kind: type[Value]) -> Value | None:
        """The result under `key`, which must be of `kind`, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
        return entry[0] if isinstance(entry[0], kind) else None

    def put(self, key: Hashable, value: object, size: int) -> None:
        """Keep `value`, which takes `size` bytes. One that is larger than the cap is not kept."""
        with self._lock:
            self._drop(key)
            if size > self._cap:
                return
            self._entries[key] = (value, size)
            self._held += size
            self._trim()

    def get_or_make(self, key: Hashable, kind: type[Value], make: Callable[[], tuple[Value, int]]) -> Value:
        """The kept result, or the one that `make` returns together with its size in bytes."""
        found = self.get(key, kind)
        if found is not None:
            return found
        value, size = make()
        self.put(key, value, size)
        return value

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._held = 0

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry[1]

    def _trim(self) -> None:
        while self._held > self._cap and self._entries:
            _, (_, size) = self._entries.popitem(last=False)
            self._held -= size
