"""Take the system's page faults out of the times."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> str:
    """Make glibc's malloc keep what is freed, from now on and for the whole process.

    By default it gives a block of more than 32 MiB back to the system at once, and takes the next one page by page:
    on a virtual machine that can cost ten times as much as to write the block. It hits anybody who returns a new map,
    a plain copy too, at sizes that have nothing to do with what we measure; below them it depends on what was
    allocated before. Kept memory makes the copy cheap, and so all ratios to it larger.

    Returns:
        How this process allocates from now on, in words.

    >>> keep_freed_memory().endswith("memory")
    True
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1):
            return "malloc keeps freed memory"
    return "malloc as the system has it may give back freed memory"
