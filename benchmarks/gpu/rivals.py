"""The rivals of `cbam bench` on the device of the day, this library's operator at their head."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from cbam.bench.rivals import COMPILED, EAGER, OPERATOR, Rival, build_rivals
from gpu.device import Machine


def build(
    machine: Machine, channels: int, dtype: torch.dtype, layout: torch.memory_format, compiled: bool
) -> dict[str, Rival]:
    """Return all rivals, with the same random weights.

    Args:
        machine: Where they shall be.
        channels: C.
        dtype: Of the weights.
        layout: Memory format of the weights.
        compiled: Include the compiled ones.
    """
    found = build_rivals(channels, dtype, layout, compiled=False)
    found.pop(OPERATOR, None)
    rivals = {OPERATOR: Rival(copy.deepcopy(found[EAGER].module), machine.backend), **found}
    for rival in rivals.values():
        rival.module.to(machine.device)
    if compiled:
        for name, rival in list(rivals.items()):
            if name != EAGER:  # of this library only what a user gets
                label = "cbam" if name == OPERATOR else name
                module = copy.deepcopy(rival.module)
                rivals[label + COMPILED] = Rival(module, rival.backend, rival.same_in_training, compiled=True)
    return rivals


def ready(machine: Machine, rival: Rival) -> Callable[[Tensor], Tensor]:
    """Return what is called: the module, or torch.compile of it for static shapes."""
    if not rival.compiled:
        return rival.module
    return torch.compile(rival.module, dynamic=False, backend=machine.compiler)
