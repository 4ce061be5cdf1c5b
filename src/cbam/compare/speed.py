"""How fast networks are trained, like with like: without warm-up, and at the same place in the schedule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_SEEDS = 2  # one training cannot be told from how busy the machine was just then


@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of one variant's training.

    Attributes:
        images_per_s: median over the epochs; None if there is no epoch after the first of a training.
        ratio: median over pairs of the same seed and epoch, to the baseline; None with less than two seeds in common.
        low: the least of these ratios.
        high: the greatest.
    """

    images_per_s: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def training_speed(rows: Iterable[Mapping[str, Any]], variant: str, baseline: str) -> TrainingSpeed:
    """Return how fast a variant was trained, and the ratio to the baseline.

    The first epoch of every training is left out: it reads images that later epochs find in memory, starts workers,
    compiles and chooses algorithms, most of all in the first training of a run. The others are compared with the
    baseline's of the same seed and epoch, which ran at nearly the same time.

    Args:
        rows: of `metrics.jsonl`.
        variant: whose speed.
        baseline: what it is compared with.

    >>> speeds = {"none": (21, 100, 100), "cbam": (90, 95, 80)}
    >>> rows = [
    ...     {"variant": variant, "seed": seed, "epoch": epoch, "images_per_s": speed}
    ...     for variant, row in speeds.items()
    ...     for seed in (0, 1)
    ...     for epoch, speed in enumerate(row, start=1)
    ... ]
    >>> training_speed(rows, "cbam", "none")
    TrainingSpeed(images_per_s=87.5, ratio=0.875, low=0.8, high=0.95)
    """
    warm = [row for row in rows if row["epoch"] > 1 and _positive(row.get("images_per_s"))]
    ours, theirs = (
        {(row["seed"], row["epoch"]): row["images_per_s"] for row in warm if row["variant"] == name}
        for name in (variant, baseline)
    )
    speed = statistics.median(ours.values()) if ours else None
    pairs = [] if variant == baseline else sorted(set(ours) & set(theirs))
    if len({seed for seed, _ in pairs}) < _SEEDS:
        return TrainingSpeed(speed)
    ratios = [ours[pair] / theirs[pair] for pair in pairs]
    return TrainingSpeed(speed, statistics.median(ratios), min(ratios), max(ratios))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
