"""What a call costs the host: Python, dispatch and launches, on a map that gives the GPU next to nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cbam.bench.cells import BOTH, FORWARD
from cbam.bench.rivals import COPY
from cbam.bench.timing import Candidate, interleave
from cbam.ops.dispatch import set_backend
from gpu import rivals as gpu_rivals
from gpu.device import Machine

SHAPE = (1, 64, 4, 4)


def measure(machine: Machine, dtype: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the host's microseconds for a call that nobody waits for.

    Args:
        machine: Where.
        dtype: By name.
        rounds: At most.
        seconds: After which no new round starts, for each mode.
    """
    kind = getattr(torch, dtype)
    x = torch.randn(SHAPE, device=machine.device).to(dtype=kind, memory_format=torch.channels_last)
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)
    rivals = gpu_rivals.build(machine, SHAPE[1], kind, torch.channels_last, compiled=False)
    found: dict[str, dict[str, list[float]]] = {}

    def both(module: torch.nn.Module) -> None:
        torch.autograd.grad(module(leaf), [leaf, *module.parameters()], gradient)

    def prepare(select: Callable[[], None]) -> None:
        select()
        machine.synchronize()

    try:
        for mode in (FORWARD, BOTH):
            candidates = {COPY: Candidate(x.clone, prepare=machine.synchronize)}
            for name, rival in rivals.items():
                rival.module.train(mode == BOTH)
                call = partial(rival.module, x) if mode == FORWARD else partial(both, rival.module)
                candidates[name] = Candidate(call, mode == BOTH, partial(prepare, rival.select))
            times = interleave(candidates, rounds=rounds, seconds=seconds)
            found[mode] = {name: [1000 * t for t in samples] for name, samples in times.items()}
    finally:
        set_backend("auto")
    return {"shape": SHAPE, "dtype": dtype, "samples_us": found}
