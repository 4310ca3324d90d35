"""The extension's one logger, `ipadapter`: visible on hosts whose root logger is silent, and never doubled."""

from __future__ import annotations

import logging


def set_up_log() -> None:
    """Give the logger a handler of its own; called again at UI reload, it changes nothing."""
    logger = logging.getLogger("ipadapter")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[IP-Adapter] %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
