"""The numbers of a report's tables, computed from a run and formatted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cbam.compare.health import class_counts
from cbam.compare.reading import Run
from cbam.compare.speed import training_speed
from cbam.compare.statistics import ACCURACY, Score

_SHOWN_CLASSES = 12
_SHOWN_EPOCHS = 20


@dataclass(frozen=True)
class Cost:
    """One cell of the cost table: a number, formatted and as it is, its spread, its ratio to the plain network's.

    `ratios` are the least and the greatest one, where there are several.
    """

    text: str
    value: float | None = None
    spread: str = ""
    ratio: str = ""
    ratios: str = ""


@dataclass(frozen=True)
class ClassChange:
    """Score of one class: the baseline's mean, the paired differences (variant minus baseline), one per seed.

    `images` is the number of its validation images, where it is known.
    """

    name: str
    baseline: float
    differences: tuple[float, ...]
    images: int | None = None

    @property
    def mean(self) -> float:
        """Mean of the differences over the seeds."""
        return statistics.fmean(self.differences)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation of the differences, if there are two or more."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else None


def quantity(value: float, unit: str = "") -> str:
    """Write a count with three or four digits and an SI prefix.

    >>> quantity(40_813_184), quantity(272_474), quantity(512, "B")
    ('40.81 M', '272.5 k', '512 B')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".strip()


def by_variant(run: Run, of: Callable[[Mapping[str, Any]], Any]) -> dict[str, list[Any]]:
    """Return what a function finds in the results of each variant, one for each seed; None is left out."""
    found: dict[str, list[Any]] = {}
    for result in run.results:
        if (content := of(result)) is not None:
            found.setdefault(result["variant"], []).append(content)
    return found


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean, and the sample standard deviation of two or more values; None where there is none."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


COST_ROWS = (
    ("parameters", "parameters"),
    ("macs", "MACs"),
    ("flops", "FLOPs"),
    ("bytes_moved", "bytes moved"),
    ("bytes_saved", "bytes saved for backward"),
    ("latency:1", "latency, batch 1"),
    ("latency:4", "latency, batch 4"),
    ("latency:32", "latency, batch 32"),
)


def cost_table(run: Run, baseline: str) -> list[tuple[str, list[Cost]]]:
    """Return (title, one cell per variant with costs) for every cost that was measured."""
    reference = run.costs.get(baseline, {})
    table = []
    for key, title in COST_ROWS:
        cells = [
            _cost(key, run.costs[variant], reference if variant != baseline else {})
            for variant in costed(run)
        ]
        table.append((title, cells))
    table.append(("training images/s", [_speed(run, variant, baseline) for variant in costed(run)]))
    return [(title, cells) for title, cells in table if any(cell.text != "–" for cell in cells)]


def _speed(run: Run, variant: str, baseline: str) -> Cost:
    """Return the training speed, from the epochs: what `costs.json` of an earlier version says counts warm-up too."""
    speed = training_speed(run.rows, variant, baseline)
    if speed.images_per_s is None:
        return Cost("–")
    text = f"{speed.images_per_s:,.{0 if speed.images_per_s >= 10 else 1}f}"
    # On a cluster two networks may have been trained by two kinds of machine.
    if speed.ratio is None or run.config.get("ray") or run.config.get("slurm"):
        return Cost(text, speed.images_per_s)
    return Cost(text, speed.images_per_s, "", f"×{speed.ratio:.2f}", f"{speed.low:.2f}–{speed.high:.2f}")


def costed(run: Run) -> list[str]:
    """Return the variants whose costs are known, in order."""
    return [variant for variant in run.variants if variant in run.costs]


def _cost(key: str, cost: Mapping[str, Any], reference: Mapping[str, Any]) -> Cost:
    value, other = _value(key, cost), _value(key, reference)
    if value is None:
        return Cost("–")
    ratio = f"×{value / other:.{2 if key.startswith('latency') else 3}f}" if other else ""
    if key.startswith("latency"):
        spread = cost["latency"][key.partition(":")[2]]
        return Cost(f"{value:.2f} ms", value, f"{spread['low_ms']:.2f}–{spread['high_ms']:.2f}", ratio)
    if key == "parameters":
        return Cost(f"{value:,.0f}", value, "", ratio)
    return Cost(quantity(value, "B" if key.startswith("bytes") else ""), value, "", ratio)


def _value(key: str, cost: Mapping[str, Any]) -> float | None:
    if key.startswith("latency"):
        value = cost.get("latency", {}).get(key.partition(":")[2], {}).get("median_ms")
    else:
        value = cost.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def curve_table(run: Run, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the learning curves as numbers: for some epochs, the last among them, each variant's mean over its seeds.

    Args:
        run: What the folder holds.
        keys: Names of the measures in the metrics.

    Returns:
        Rows with the epoch and, by key, a list with one mean for each of the run's variants; None: no seed has it.
    """
    values: dict[tuple[int, str, str], list[float]] = {}
    for row in run.rows:
        for key in keys:
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault((row["epoch"], row["variant"], key), []).append(value)
    epochs = sorted({epoch for epoch, _, _ in values})
    step = -(-len(epochs) // _SHOWN_EPOCHS) or 1
    shown = epochs[::-1][::step][::-1]  # counted from the last
    return [
        {"epoch": epoch}
        | {
            key: [
                statistics.fmean(found) if (found := values.get((epoch, variant, key))) else None
                for variant in run.variants
            ]
            for key in keys
        }
        for epoch in shown
    ]


def class_changes(run: Run, variant: str, baseline: str, score: Score = ACCURACY) -> list[ClassChange]:
    """Compare the classes of a variant with the baseline's, seed by seed; best change first.

    Only seeds that both have finished count; a class without validation images is left out.
    """
    names: Sequence[str] = run.data.get("classes", [])
    ours, theirs = _class_scores(run, variant, score), _class_scores(run, baseline, score)
    counts: Sequence[int] = next(filter(None, map(class_counts, run.results)), [])
    changes = []
    for position, name in enumerate(names):
        pairs = [
            (ours[seed][position], theirs[seed][position])
            for seed in ours
            if seed in theirs and position in ours[seed] and position in theirs[seed]
        ]
        if pairs:
            mean = statistics.fmean(b for _, b in pairs)
            images = counts[position] if position < len(counts) else None
            changes.append(ClassChange(name, mean, tuple(a - b for a, b in pairs), images))
    return sorted(changes, key=lambda change: -change.mean)


def _class_scores(run: Run, variant: str, score: Score) -> dict[int, dict[int, float]]:
    """Return seed -> class number -> score, for the classes that have one."""
    scores = {}
    for result in run.results:
        if result["variant"] == variant:
            listed = enumerate(result.get(score.per_class) or [])
            scores[result["seed"]] = {
                n: value for n, value in listed if value is not None and math.isfinite(value)
            }
    return scores


def extremes(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """Return all changes if they are few, else the best and the worst ones.

    >>> rows = [ClassChange(str(n), 0.5, (n / 100,)) for n in range(40, 0, -1)]
    >>> [row.name for row in extremes(rows)][4:8]
    ['36', '35', '6', '5']
    """
    if len(changes) <= _SHOWN_CLASSES:
        return list(changes)
    return [*changes[: _SHOWN_CLASSES // 2], *changes[-(_SHOWN_CLASSES // 2) :]]
