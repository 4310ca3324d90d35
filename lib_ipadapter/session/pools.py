"""What holds one large model at a time and lets go of it afterwards, as `session.features` and `session.faces` do."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="ReleasedPool")


class ReleasedPool:
    """Released when its `with` block is left, however that happens."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Drop the model and give its memory back; safe to call twice."""
        raise NotImplementedError
