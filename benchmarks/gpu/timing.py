"""Time several callables side by side, in rounds: by the GPU's own clock, alone or as CUDA graphs."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cbam.bench.timing import FEWEST_ROUNDS, order
from gpu.device import Machine

WARM_UP = 3


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        call: What is timed.
        prepare: Called before its turn, outside the clock: choose a backend, empty or fill the cache.
        repeats: How many times `call` does the thing.
    """

    call: Callable[[], object]
    prepare: Callable[[], object]
    repeats: int = 1


def interleave(
    candidates: Mapping[str, Candidate], machine: Machine, *, rounds: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Run every candidate once in each round, as `cbam.bench.timing.interleave` does.

    Args:
        candidates: name to candidate.
        machine: Where they run.
        rounds: How many rounds.
        seconds: No new round starts after so long, but there are at least 5, or `rounds` if that is fewer.

    Returns:
        {name: microseconds, a sample a round}.
    """
    if not candidates:
        return {}
    clock = _events() if machine.is_gpu else _wall
    for candidate in candidates.values():
        candidate.prepare()
        for _ in range(WARM_UP):
            candidate.call()
    machine.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    try:
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for name in order(list(candidates), number):
                candidate = candidates[name]
                candidate.prepare()
                samples[name].append(clock(candidate.call) / candidate.repeats)
    finally:
        gc.enable()
    return samples


def capture(machine: Machine, calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that does all the calls as one CUDA graph; a plain loop where there are none.

    Args:
        machine: Where they run.
        calls: What they return is dropped, so that each may use the memory of the one before it.
    """
    if not machine.is_gpu:

        def loop() -> None:
            for call in calls:
                call()

        return loop
    # Kernels are compiled and libraries set up on a side stream first: none of that may happen during the capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _events() -> Callable[[Callable[[], object]], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(call: Callable[[], object]) -> float:
        # No wait before: while the device still empties its cache, the host gets a little ahead, as in a network.
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1000 * start.elapsed_time(end)

    return clock


def _wall(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)
