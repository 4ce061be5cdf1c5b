"""What the library logs, for people at a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable


def log_to(notice: Callable[[str], None]) -> None:
    """Hand on what the library logs, e.g. of a damaged file or of loaded weights, each sentence once."""
    shown = set()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in shown:
                shown.add(text)
                notice(text)

    logger = logging.getLogger("cbam")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
