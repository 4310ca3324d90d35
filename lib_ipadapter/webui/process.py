"""What lives as long as the WebUI's process: the host, the list of models, the cache. Made when first asked for."""

from __future__ import annotations

from functools import lru_cache

from ..hosts.select import current_host
from ..session.cache import ResultCache
from ..session.models import Models
from ..session.services import Services
from . import settings


@lru_cache(maxsize=1)
def _lasting() -> Services:
    host = current_host()
    return Services(
        host=host,
        models=Models(host),
        cache=ResultCache(settings.cache_bytes()),
        store=settings.image_store,
        stop_on_failure=settings.stop_on_failure,
    )


def services() -> Services:
    """The services of a job; the cache's bound follows the setting."""
    lasting = _lasting()
    lasting.cache.set_cap(settings.cache_bytes())
    return lasting
