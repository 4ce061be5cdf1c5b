"""A line on the terminal that shows the progress of a long job; nothing elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

_EVERY_S = 0.5


class Tell(Protocol):
    """Called with the finished and the total number."""

    def __call__(self, done: int, total: int, /) -> None: ...  # noqa: D102


@contextmanager
def progress(what: str, stream: IO[str] | None = None) -> Iterator[Tell]:
    """Yield a function that shows "what: done of total" on a terminal, twice a second; the line is cleared at the end.

    Args:
        what: the job, such as "checking images".
        stream: standard error by default. Nothing is written unless it is a terminal, and only by the first of several
            processes.
    """
    stream = stream or sys.stderr
    quiet = not stream.isatty() or os.environ.get("RANK", "0") != "0"
    last, shown = time.monotonic(), False

    def tell(done: int, total: int, /) -> None:
        nonlocal last, shown
        if quiet or time.monotonic() - last < _EVERY_S:
            return
        last, shown = time.monotonic(), True
        stream.write(f"\r{what}: {done:,} of {total:,} ")
        stream.flush()

    try:
        yield tell
    finally:
        if shown:
            stream.write("\r\033[K")
            stream.flush()
