"""Time several callables side by side, in rounds."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

SAMPLE_MS = 2.0
"""What takes less is called several times for one sample: the clock, and one interrupt, shall not matter."""
SETTLE_MS = 20.0
"""What takes less is called once untimed before each sample: the caches and threads are then its own."""
WARM_UP = 2
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        call: What is timed.
        grad: Whether autograd records it; otherwise it runs in inference mode.
        prepare: Called before its turn, outside the clock, e.g. to choose a backend.
    """

    call: Callable[[], object]
    grad: bool = False
    prepare: Callable[[], object] | None = None


def interleave(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every candidate once in each round, so that a busy or hot machine is unfair to all of them alike.

    The order differs from round to round, see `order`. Warm-up comes before the first round.

    Args:
        candidates: name to candidate.
        rounds: How many rounds.
        seconds: No new round starts after so long, but there are at least 5 rounds, or `rounds` if that is fewer.
        clock: Seconds; another one for tests.

    Returns:
        {name: milliseconds of one call, a sample a round}.

    >>> times = interleave({"a": Candidate(lambda: sum(range(9)))}, rounds=3)
    >>> len(times["a"])
    3
    """
    repeats = {name: _repeats(candidate, clock) for name, candidate in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    start = clock()
    try:
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and clock() - start > seconds:
                break
            for name in order(names, number):
                samples[name].append(_sample(candidates[name], *repeats[name], clock))
    finally:
        if collects:
            gc.enable()
    return samples


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each starts with another one, and every second round runs backwards.

    So nobody has always the same one before him, who leaves the caches to him in his own way.

    >>> order("abc", 0), order("abc", 1), order("abc", 2)
    (['a', 'b', 'c'], ['a', 'c', 'b'], ['c', 'a', 'b'])
    """
    first = number % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 25th, 50th and 75th percentile.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(samples: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return sample / reference round by round: what slows a whole round down cancels out.

    >>> ratios([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    [2.0, 3.0, 2.0]
    """
    return [mine / theirs for mine, theirs in zip(samples, reference, strict=True)]


def _repeats(candidate: Candidate, clock: Callable[[], float]) -> tuple[int, bool]:
    """Warm up; return how many calls make a sample, and whether an untimed call comes first."""
    fastest = min(_sample(candidate, 1, False, clock) for _ in range(WARM_UP))
    if fastest < SAMPLE_MS:
        # The first calls are the slowest: look again before choosing.
        fastest = min(fastest, _sample(candidate, 5, False, clock))
    return max(1, min(1000, math.ceil(SAMPLE_MS / max(fastest, 1e-6)))), fastest < SETTLE_MS


def _sample(candidate: Candidate, repeats: int, settle: bool, clock: Callable[[], float]) -> float:
    call = candidate.call
    if candidate.prepare:
        candidate.prepare()
    mode: Any = nullcontext() if candidate.grad else torch.inference_mode()
    with mode:
        if settle:
            call()
        start = clock()
        for _ in range(repeats):
            call()
        return 1000 * (clock() - start) / repeats
