"""Summaries of a run's results: geometric means over the shapes, and ratios between implementations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cbam.bench.baselines import COPY, COPY_INTO, TEXTBOOK, is_compiled_peer, ours_of
from cbam.bench.cases import BOTH, Result
from cbam.evaluate.timing import geometric_mean

FEWEST_MAPS = {False: 2, True: 5}
"""The fewest reads and writes of the map, without and with backward: x in, y out; for backward x and two passes of
the gradient, dx out."""


def select(
    results: Iterable[Result], part: str, mode: str = "", memory_format: str = "", study: str = ""
) -> list[Result]:
    """Return the results of a part and a study; of one mode or memory format where that is given."""
    return [
        result
        for result in results
        if result.case.part == part
        and mode in ("", result.case.mode)
        and memory_format in ("", result.case.memory_format)
        and study == result.case.study
    ]


def providers(results: Sequence[Result]) -> list[str]:
    """Return everything that was timed in all of the results, in their order."""
    first, *others = results
    return [name for name in first.samples_ms if all(name in other.samples_ms for other in others)]


def ours(result: Result) -> str:
    """Return the name of this library's best uncompiled row in a result."""
    return ours_of(result.samples_ms)


def mean_ratio(results: Sequence[Result], provider: str, reference: str | None = None) -> float:
    """Return the geometric mean over the results of provider / reference; by default the results' own reference."""
    return geometric_mean(result.ratio(provider, reference) for result in results)


def over_ours(name: str) -> Callable[[Result], float | None]:
    """Return the measure (time of a row) / (time of this library's row)."""
    return lambda result: result.ratio(name, ours(result)) if _has(result, name, ours(result)) else None


textbook_over_ours = over_ours(TEXTBOOK)


def best_compiled(result: Result) -> str | None:
    """Return the fastest of the other modules under torch.compile; None if none was compiled."""
    peers = [name for name in result.samples_ms if is_compiled_peer(name)]
    return min(peers, key=lambda name: result.quartiles(name)[1], default=None)


def best_compiled_over_ours(result: Result) -> float | None:
    """Return (time of the fastest compiled peer) / (time of this library); None if there is none."""
    best = best_compiled(result)
    return None if best is None else over_ours(best)(result)


def copy_share(result: Result, provider: str = "") -> float | None:
    """Return the time that the fewest reads and writes would take at the speed of a copy, over a provider's time.

    Args:
        result: Of modules; the faster of the two copies counts.
        provider: By default this library's row.
    """
    name = provider or ours(result)
    if not _has(result, name, COPY, COPY_INTO):
        return None
    copy = min(statistics.median(result.samples_ms[one]) for one in (COPY, COPY_INTO))
    return copy * FEWEST_MAPS[result.case.mode == BOTH] / 2 / statistics.median(result.samples_ms[name])


def mean_of(results: Sequence[Result], measure: Callable[[Result], float | None]) -> float | None:
    """Return the geometric mean of a measure; None unless every result has it."""
    values = [measure(result) for result in results]
    known = [value for value in values if value is not None]
    return geometric_mean(known) if known and len(known) == len(values) else None


def widest_quartiles(results: Sequence[Result]) -> tuple[float, Result, str] | None:
    """Return the largest interquartile range relative to its median, and whose it is."""
    found = []
    for result in results:
        for provider in result.samples_ms:
            low, middle, high = result.quartiles(provider)
            found.append(((high - low) / middle, result, provider))
    return max(found, key=lambda item: item[0], default=None)


def slope(elements: Sequence[int], times: Sequence[float]) -> float:
    """Return the exponent e of time ~ elements^e, by least squares on the logarithms; 1 is linear.

    >>> round(slope([1, 10, 100], [2.0, 20.0, 200.0]), 6)
    1.0
    """
    return statistics.linear_regression([math.log(n) for n in elements], [math.log(t) for t in times]).slope


def dram_passes(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return bytes moved through DRAM over bytes of the map, the median of the calls, for each map and provider."""
    calls: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for result in select(results, "traffic"):
        size = {"float32": 4, "float64": 8}.get(result.case.dtype, 2)
        for region in result.extra.get("regions", ()):
            n, c, h, w = region["shape"]
            read, written = (sum(kernel[i] for kernel in region["kernels"]) for i in (1, 2))
            pair = [count / (size * n * c * h * w) for count in (read, written + region["written_after"])]
            key = (tuple(region["shape"]), region["provider"], region["direction"])
            calls.setdefault(key, []).append((pair[0], pair[1]))
    found = []
    for (shape, provider, direction), pairs in calls.items():
        read, written = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        found.append({"shape": shape, "provider": provider, "direction": direction, "read": read,
                      "written": written, "passes": read + written})  # fmt: skip
    return found


def _has(result: Result, *names: str) -> bool:
    return all(name in result.samples_ms for name in names)
