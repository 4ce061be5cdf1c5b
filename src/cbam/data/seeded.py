"""Random numbers of torchvision's transforms from a seed of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block, and go on afterwards as if nothing had been drawn.

    torchvision's transforms draw from torch's global CPU generator and accept no other.

    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     torch.equal(torch.rand(2), first)
    True
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
