"""`p.sample` wrapped on the instance for one call; made, recognised and undone by `session.job`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Sampling = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class WrappedSample:
    """Stands in for `p.sample` and takes itself away when called: `sampling(inner, args, kwargs)` runs instead.

    The hosts copy processing objects with everything on the instance, so a copy may carry the wrapper of another one:
    `owner` tells.
    """

    def __init__(self, owner: Any, sampling: Sampling) -> None:
        self.owner = owner
        self._sampling = sampling
        self._own = owner.__dict__.get("sample")
        self._inner: Callable[..., Any] = owner.sample

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.owner.__dict__.get("sample") is self:
            self.undo(self.owner)
        return self._sampling(self._inner, args, kwargs)

    def undo(self, p: Any) -> None:
        """Give `p`, whose own `sample` this is, what was there before: another's wrapper, or its class's method."""
        if self._own is None:
            del p.sample
        else:
            p.sample = self._own
