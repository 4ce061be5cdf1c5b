"""The C++ backend: the compiled operator, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.ops import library, registered
from cbam.ops.direct import DirectForm

name = "cpp"
title = "the C++ operator"
device = "the CPU"
device_types: tuple[str, ...] = ("cpu",)

# The first question whether the compiled library is there loads it.
forward, backward = registered.forward, registered.backward
unavailable_reason = library.load
form = DirectForm

_SETS = {0: "plain", 1: "avx2", 2: "avx512"}


def unsupported_reason(x: Tensor) -> str | None:
    """Return None: a map on the CPU can have any size."""
    return None


def available() -> bool:
    """Return whether the operator can be called; loads its library at the first call."""
    return unavailable_reason() is None


def instruction_set() -> str | None:
    """Return which of the operator's kernels this CPU gets ("plain", "avx2", "avx512"), None without a library."""
    return _SETS.get(torch.ops.cbam.isa()) if available() else None
