"""Time several callables side by side, in rounds, by the wall clock or by a GPU's own."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

SAMPLE_MS = 2.0
"""What takes less is called several times for one sample, so that the clock and a single interrupt do not matter."""
SETTLE_MS = 20.0
"""What takes less is called once untimed before each sample, to fill the caches and wake the threads."""
WARM_UP = 2
FEWEST_ROUNDS = 5
PROFILED = 5


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        call: What is timed.
        grad: Whether autograd records it; otherwise it runs in inference mode.
        prepare: Called before its turn, outside the clock, e.g. to choose a backend.
        single: A sample is one call right after `prepare`: no untimed call before it, no repeats.
        contains: How many times `call` itself does the thing, as a CUDA graph of several calls does.
    """

    call: Callable[[], object]
    grad: bool = False
    prepare: Callable[[], object] | None = None
    single: bool = False
    contains: int = 1


class Clock:
    """The wall clock: right where a call returns when its work is done, as on a CPU."""

    def seconds(self) -> float:
        """Return the time since some fixed moment."""
        return time.perf_counter()

    def time(self, call: Callable[[], object]) -> float:
        """Run `call` once and return the seconds that it takes."""
        start = self.seconds()
        call()
        return self.seconds() - start


class ProcessorClock(Clock):
    """The time that the process has had a processor: on a busy machine, where the wall clock shows the neighbours."""

    def seconds(self) -> float:
        """Return the time since the process began."""
        return time.process_time()


class WaitingClock(Clock):
    """The wall clock with an accelerator idle before and after the call: what a caller who needs the result sees.

    Args:
        device: On which the call computes.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def time(self, call: Callable[[], object]) -> float:
        """Run `call` once, wait for the device, and return the seconds."""

        def finished() -> None:
            call()
            torch.accelerator.synchronize(self.device)

        torch.accelerator.synchronize(self.device)
        return super().time(finished)


class EventClock(Clock):
    """CUDA events around the call.

    There is no wait before it: while the device still does what `prepare` launched, the host gets ahead, as it does
    in a network.
    """

    def __init__(self) -> None:
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, call: Callable[[], object]) -> float:
        """Run `call` once and return the seconds between the two events."""
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


def clock_of(device: torch.device) -> Clock:
    """Return the clock that waits for `device`; on a CPU the plain one."""
    return Clock() if device.type == "cpu" else WaitingClock(device)


def interleave(
    candidates: Mapping[str, Candidate], *, rounds: int, seconds: float = math.inf, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Run every candidate once in each round, so that a busy or hot machine slows all of them down alike.

    The order changes from round to round, see `order`. Warm-up comes before the first round.

    Args:
        candidates: Name to candidate.
        rounds: How many rounds.
        seconds: No new round starts after this time, but there are at least 5 rounds, or `rounds` if that is fewer.
        clock: By default the wall clock.

    Returns:
        {name: milliseconds of one call, a sample a round}.

    >>> times = interleave({"a": Candidate(lambda: sum(range(9)))}, rounds=3)
    >>> len(times["a"])
    3
    """
    clock = clock or Clock()
    repeats = {name: _repeats(candidate, clock) for name, candidate in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    start = clock.seconds()
    try:
        for number in range(rounds if candidates else 0):
            if number >= FEWEST_ROUNDS and clock.seconds() - start > seconds:
                break
            for name in order(names, number):
                samples[name].append(_sample(candidates[name], *repeats[name], clock))
    finally:
        if collects:
            gc.enable()
    return samples


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each starts with another name, and every second one of three or more runs backwards.

    So no candidate always follows the same one, whose data it would find in the caches.

    >>> order("abc", 0), order("abc", 1), order("abc", 2), order("ab", 1)
    (['a', 'b', 'c'], ['a', 'c', 'b'], ['c', 'a', 'b'], ['b', 'a'])
    """
    first = number % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 and len(names) > 2 else turned


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


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean, which treats twice and half alike.

    >>> round(geometric_mean([1.0, 4.0]), 9)
    2.0
    """
    return statistics.geometric_mean(values)


def capture(calls: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], object]:
    """Return a function that makes all the calls as one CUDA graph; a plain loop where there is no GPU.

    What the calls return is dropped, so that each may use the memory of the one before it.

    >>> calls = []
    >>> _ = capture([lambda: calls.append("a")] * 2, torch.device("cpu"))()
    >>> calls
    ['a', 'a']
    """
    if device.type != "cuda":
        return lambda: [call() for call in calls]
    # First on a side stream: kernels are compiled and libraries set up, which cannot be done during the capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP + 1):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def kernel_times(call: Callable[[], object], device: torch.device) -> dict[str, list[float]]:
    """Return {kernel: [launches, microseconds]} of one call, by torch's profiler; on a CPU of the operations.

    >>> "aten::ones" in kernel_times(lambda: torch.ones(3), torch.device("cpu"))
    True
    """
    on_gpu, found = device.type == "cuda", dict[str, list[float]]()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    for _ in range(PROFILED):
        call()
    clock_of(device).time(lambda: None)
    with profile(activities=activities) as record:
        for _ in range(PROFILED):
            call()
        clock_of(device).time(lambda: None)
    for event in record.events() or ():
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            row = found.setdefault(event.name, [0.0, 0.0])
            row[0] += 1 / PROFILED
            row[1] += event.time_range.elapsed_us() / PROFILED
    return found


def _repeats(candidate: Candidate, clock: Clock) -> tuple[int, bool]:
    """Warm up; return how many calls make a sample, and whether an untimed call comes first."""
    if candidate.single:
        for _ in range(WARM_UP + 1):
            _sample(candidate, 1, False, clock)
        return 1, False
    fastest = min(_sample(candidate, 1, False, clock) for _ in range(WARM_UP))
    if fastest < SAMPLE_MS:
        # The first calls are the slowest: look again before choosing.
        fastest = min(fastest, _sample(candidate, 5, False, clock))
    return max(1, min(1000, math.ceil(SAMPLE_MS / max(fastest, 1e-6)))), fastest < SETTLE_MS


def _sample(candidate: Candidate, repeats: int, settle: bool, clock: Clock) -> float:
    call = candidate.call
    if candidate.prepare:
        candidate.prepare()
    mode: Any = nullcontext() if candidate.grad else torch.inference_mode()

    def several() -> None:
        for _ in range(repeats):
            call()

    with mode:
        if settle:
            call()
        return 1000 * clock.time(call if repeats == 1 else several) / (repeats * candidate.contains)
