"""What the processes that are left say when one of several has ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from cbam.errors import CBAMError

# gloo raises a plain RuntimeError.
_CONNECTION = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|timed out", re.IGNORECASE
)


class ProcessLost(CBAMError):
    """Another process of this training has ended, so this one cannot go on."""

    exit_code = 1


@contextmanager
def naming_lost_processes(processes: int) -> Iterator[None]:
    """Say, where a collective operation fails inside a `with` block, that another process is gone.

    Args:
        processes: of the training.

    Raises:
        ProcessLost: instead of the backend's error.

    >>> with naming_lost_processes(2):
    ...     raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    Traceback (most recent call last):
    cbam.train.lost.ProcessLost: another process of this training is gone (Connection closed by peer ...
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0][:200]
        known = isinstance(error, getattr(distributed, "DistError", ())) or _CONNECTION.search(text)
        if processes == 1 or not known:
            raise
        raise ProcessLost(
            f"another process of this training is gone ({text}). Its own output says why. Everything up to the last"
            " checkpoint is saved: start all processes again with the same command, and they resume from there."
        ) from error
