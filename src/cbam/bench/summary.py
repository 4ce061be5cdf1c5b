"""What the results of a run say together: geometric means over the shapes, and who is how much faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cbam.bench.cells import Result, geometric_mean
from cbam.bench.rivals import EAGER, OPERATOR, is_compiled_peer
from cbam.errors import CBAMError


def load(folder: Path) -> list[Result]:
    """Read the results in a run's folder.

    Args:
        folder: What `cbam bench` was given as `--output`.

    Raises:
        CBAMError: It holds no finished run.
    """
    file = folder / "bench.json"
    try:
        return [Result.from_json(row) for row in json.loads(file.read_text(encoding="utf-8"))["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CBAMError(f"{file} holds no run ({error}). Make one: cbam bench --output {folder}") from None


def select(
    results: Iterable[Result], part: str, mode: str = "", memory_format: str = "", study: str = ""
) -> list[Result]:
    """Return the results of a part; of one mode, memory format or study where that is given."""
    return [
        result
        for result in results
        if result.cell.part == part
        and mode in ("", result.cell.mode)
        and memory_format in ("", result.cell.memory_format)
        and study == result.cell.study
    ]


def providers(results: Sequence[Result]) -> list[str]:
    """Return everybody who was timed in all of the results, in their order."""
    first, *others = results
    return [name for name in first.samples_ms if all(name in other.samples_ms for other in others)]


def ours(result: Result) -> str:
    """Return the name of this library's best eager call in a result."""
    return OPERATOR if OPERATOR in result.samples_ms else EAGER


def mean_ratio(results: Sequence[Result], provider: str, reference: str | None = None) -> float:
    """Return the geometric mean over the results of provider / reference; by default the results' own reference."""
    return geometric_mean(result.ratio(provider, reference) for result in results)


def textbook_over_ours(result: Result) -> float:
    """Return how many times the textbook's module takes as long as this library's."""
    return result.ratio("textbook", ours(result))


def best_compiled(result: Result) -> str | None:
    """Return the fastest of the other modules under torch.compile; None if none was compiled."""
    peers = [name for name in result.samples_ms if is_compiled_peer(name)]
    return min(peers, key=lambda name: result.quartiles(name)[1], default=None)


def best_compiled_over_ours(result: Result) -> float | None:
    """Return how many times the fastest compiled peer takes as long as this library; None if there is none."""
    best = best_compiled(result)
    return None if best is None else result.ratio(best, ours(result))


def mean_of(results: Sequence[Result], measure: Callable[[Result], float | None]) -> float | None:
    """Return the geometric mean of a measure; None unless every result has it."""
    values = [measure(result) for result in results]
    known = [value for value in values if value is not None]
    return geometric_mean(known) if known and len(known) == len(values) else None


def widest_spread(results: Sequence[Result]) -> tuple[float, Result, str] | None:
    """Return the largest interquartile range relative to its median, and whose it is."""
    found = []
    for result in results:
        for provider in result.samples_ms:
            low, middle, high = result.quartiles(provider)
            found.append(((high - low) / middle, result, provider))
    return max(found, key=lambda item: item[0], default=None)
