"""The scaling rows: one thread and several at N = 1; batches and maps from small to large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cbam.bench.cells import Cell, Result
from cbam.bench.modules import Contest
from cbam.bench.rivals import COPY, ours_of
from cbam.bench.settings import BenchConfig
from cbam.bench.timing import Candidate, interleave
from cbam.ops.dispatch import set_backend

ONE_THREAD = ", 1 thread"
_SECONDS = 1 / 8  # of the setting: there are many sizes


def measure(cell: Cell, config: BenchConfig) -> Result:
    """Time this library's module, and a copy, at one size."""
    try:
        contest = Contest(cell, compiled=False)
        ours = ours_of(contest.rivals)
        every = contest.candidates()
        candidates = {name: every[name] for name in (COPY, ours)}
        seconds = _SECONDS * config.seconds
        if cell.study == "threads":
            candidates |= {name + ONE_THREAD: every[name] for name in (COPY, ours)}
            candidates = {
                name: _with_threads(candidate, 1 if name.endswith(ONE_THREAD) else cell.threads)
                for name, candidate in candidates.items()
            }
            seconds = config.seconds
        times = interleave(candidates, rounds=config.rounds, seconds=seconds)
    finally:
        set_backend("auto")
        torch.set_num_threads(cell.threads)
    return Result(cell, times, input_bytes=contest.x.nbytes)


def slope(elements: Sequence[int], times: Sequence[float]) -> float:
    """Return the exponent e of time ~ elements^e, by least squares on the logarithms; 1 is linear.

    >>> round(slope([1, 10, 100], [2.0, 20.0, 200.0]), 6)
    1.0
    """
    xs, ys = [math.log(n) for n in elements], [math.log(t) for t in times]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def _with_threads(candidate: Candidate, threads: int) -> Candidate:
    def prepare() -> None:
        torch.set_num_threads(threads)
        if candidate.prepare:
            candidate.prepare()

    return Candidate(candidate.call, candidate.grad, prepare)
