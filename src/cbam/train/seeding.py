"""Randomness as a pure function of where it is used: no generator's state has to be saved to resume exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *use: str | int) -> int:
    """Return a seed for one use of randomness in a run; other uses and other runs get unrelated ones.

    Args:
        seed: The run's seed.
        use: Identifies it, e.g. ("epoch", 3).

    >>> derive_seed(0, "backbone") == derive_seed(0, "backbone")
    True
    >>> derive_seed(0, "epoch", 1) == derive_seed(1, "epoch", 0)
    False
    """
    text = "\0".join(str(part) for part in (seed, *use))
    # 63 bits, because torch takes a signed 64-bit number on some devices.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python and of torch on all devices (NumPy's is used nowhere here).

    >>> seed_everything(0); first = torch.rand(1); seed_everything(0); bool(torch.rand(1) == first)
    True
    """
    random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Run a block under `seed`, then restore torch's CPU generator.

    >>> before = torch.get_rng_state()
    >>> with forked_rng(7):
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
