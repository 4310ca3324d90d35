"""What a job needs from outside itself, handed in by `webui.script` so that jobs share no other state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..hosts.base import Host
from ..units.images import ImageStore
from .cache import ResultCache
from .models import Models
from .shelf import LoraShelf


class Services(NamedTuple):
    """`store` and `stop_on_failure` are asked per job, because the settings behind them change."""

    host: Host
    models: Models
    cache: ResultCache
    store: Callable[[], ImageStore]
    stop_on_failure: Callable[[], bool]
    shelf: LoraShelf
