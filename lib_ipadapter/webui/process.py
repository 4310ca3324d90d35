"""What lives as long as the WebUI's process: the host, the list of models, the caches. Made when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ..hosts.select import current_host
from ..session.cache import ResultCache
from ..session.faces import FacePool
from ..session.models import Models
from ..session.services import Services
from ..session.shelf import LoraShelf
from ..units.images import ImageStore
from . import settings
from .face_looks import FaceLooks
from .looks import Looks

_analysing = threading.Lock()


@lru_cache(maxsize=1)
def _lasting() -> Services:
    host = current_host()
    return Services(
        host=host,
        models=Models(lambda: host.folders(_user_folders()), lambda: host.face_folders(_user_folders())),
        cache=ResultCache(settings.cache_bytes()),
        store=image_store,
        stop_on_failure=settings.stop_on_failure,
        shelf=LoraShelf(),
    )


def _user_folders() -> tuple[Path, ...]:
    """`--ipadapter-dir` first, then the setting's folders."""
    from modules import shared

    flag = getattr(shared.cmd_opts, "ipadapter_dir", None)
    return ((Path(flag),) if flag else ()) + settings.extra_folders()


@lru_cache(maxsize=4)
def _store(folder: Path, cap_bytes: int) -> ImageStore:
    return ImageStore(folder, cap_bytes)


def image_store() -> ImageStore:
    """The store of reference pictures where the settings put it: one object for a folder, so one lock."""
    from modules import paths

    return _store(settings.store_folder(Path(paths.data_path)), settings.store_bytes())


@lru_cache(maxsize=1)
def looks() -> Looks:
    """Thumbnails and squares for the page."""
    return Looks()


@contextmanager
def face_pool() -> Iterator[FacePool]:
    """What analyses faces for the page and the API: one at a time, as an engine takes 200 MB, and gone afterwards."""
    lasting = services()
    with _analysing, FacePool(lasting.host, lasting.cache) as pool:
        yield pool


@lru_cache(maxsize=1)
def face_looks() -> FaceLooks:
    """Analysed references for the page."""
    return FaceLooks(face_pool)


def services() -> Services:
    """The services of a job; the cache's bound follows the setting."""
    lasting = _lasting()
    lasting.cache.set_cap(settings.cache_bytes())
    if not settings.cache_bytes():
        lasting.shelf.replace({})
    return lasting
