"""Means, spread and paired differences over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.compare.health import Problem, problems
from cbam.documents import read_json
from cbam.errors import CBAMError
from cbam.files import write_atomically


@dataclass(frozen=True)
class Score:
    """The number by which networks are compared, a fraction.

    Attributes:
        key: Its name in `result.json` and in the metrics.
        word: What it is called.
        per_class: Name of the list of each class's in `result.json`.
    """

    key: str
    word: str
    per_class: str


ACCURACY = Score("val_accuracy", "accuracy", "per_class_accuracy")
LABELS = Score("val_map", "mean average precision", "per_class_ap")


def score_of(data: Mapping[str, Any]) -> Score:
    """Return the number by which networks on these images are compared.

    Args:
        data: what `data.json` says of them.

    >>> score_of({"task": "multilabel"}).key, score_of({}).key
    ('val_map', 'val_accuracy')
    """
    return LABELS if data.get("task") == "multilabel" else ACCURACY


FEWEST_PAIRS = 3
"""Of two pairs the interval is 12.7 standard errors wide on both sides: it says nothing, and looks like an answer."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (ours - theirs) over the seeds that both have, with its t interval.

    `low`, `high` and `p_value` are None where no interval exists: fewer than `FEWEST_PAIRS` pairs, or no spread at all
    (`no_spread`), where an interval of zero width would claim certainty. `mean` is None without a pair.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    no_spread: bool = False

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The ends of the interval; None where it has no bound: two fractions differ by at most 1.

        >>> PairedDifference(0.1, -1.3, 0.4, 3, 0.3).bounds
        (None, 0.4)
        """
        low = self.low if self.low is not None and self.low > -1 else None
        high = self.high if self.high is not None and self.high < 1 else None
        return low, high

    @property
    def bracketed(self) -> str:
        """The interval in points, for a terminal; nothing without a difference.

        >>> PairedDifference(0.1, None, None, 2, None).bracketed, PairedDifference(0.1, -1.3, 0.4, 3, 0.3).bracketed
        ('[no bounds]', '[no bound, +40.00]')
        """
        if self.mean is None:
            return ""
        if self.bounds == (None, None):
            return "[no bounds]"
        return "[{}, {}]".format(*("no bound" if end is None else points(end) for end in self.bounds))

    @property
    def in_words(self) -> str:
        """The interval in points, or why there is none.

        >>> PairedDifference(0.1, -0.3, 0.4, 3, 0.3).in_words, PairedDifference(0.1, None, None, 2, None).in_words
        ('−30.00 to +40.00', 'too few seeds for an interval')
        """
        low, high = self.bounds
        if self.no_spread:
            return f"the same in all {self.n} seeds, no interval"
        if self.n < FEWEST_PAIRS:
            return "too few seeds for an interval"
        if low is None:
            return "an interval without bounds" if high is None else f"at most {points(high)}"
        return f"at least {points(low)}" if high is None else f"{points(low)} to {points(high)}"


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Compare two variants seed by seed with the paired t test (`scipy.stats.ttest_rel`).

    Args:
        ours: one score per seed.
        theirs: the scores of the other variant, for the same seeds in the same order. A pair in which either
            score is not finite (a missing or broken run) is left out; `n` says how many remained.
        confidence: coverage of the interval, between 0 and 1.

    Raises:
        CBAMError: the two lists differ in length, or the confidence is not between 0 and 1.

    >>> difference = paired_difference([0.82, 0.85, 0.84], [0.80, 0.82, 0.80])
    >>> f"{difference.mean:.3f} [{difference.low:.3f}, {difference.high:.3f}] n={difference.n}"
    '0.030 [0.005, 0.055] n=3'
    """
    if len(ours) != len(theirs):
        raise CBAMError(
            f"a paired comparison needs one score per seed in both lists; got {len(ours)} and {len(theirs)}"
        )
    if not 0 < confidence < 1:
        raise CBAMError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence}")
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not pairs:
        return PairedDifference(None, None, None, 0, None)
    differences = [a - b for a, b in pairs]
    mean = statistics.fmean(differences)
    if len(pairs) < FEWEST_PAIRS:
        return PairedDifference(mean, None, None, len(pairs), None)
    # 0.9 - 0.8 and 0.7 - 0.6 differ in the last bit: rounding is not spread.
    rounding = 8 * math.ulp(max(abs(value) for pair in pairs for value in pair))
    if max(differences) - min(differences) <= rounding:
        return PairedDifference(mean, None, None, len(pairs), None, no_spread=True)
    from scipy import stats

    test = stats.ttest_rel(*zip(*pairs, strict=True))
    interval = test.confidence_interval(confidence)
    return PairedDifference(mean, float(interval.low), float(interval.high), len(pairs), float(test.pvalue))


@dataclass(frozen=True)
class VariantSummary:
    """One variant's finished seeds, mean, sample standard deviation (n - 1) and paired differences."""

    variant: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    mean: float | None
    sd: float | None
    to_baseline: PairedDifference | None
    to_control: PairedDifference | None


@dataclass(frozen=True)
class Summary:
    """All variants of a run, in the order given, what they are compared with, and which trainings failed."""

    variants: tuple[VariantSummary, ...]
    baseline: str
    control: str | None
    confidence: float = 0.95
    problems: tuple[Problem, ...] = ()
    score: Score = ACCURACY

    def __getitem__(self, variant: str) -> VariantSummary:
        return next(row for row in self.variants if row.variant == variant)


def summarise(
    results: Iterable[Mapping[str, Any]],
    variants: Sequence[str] | None = None,
    score: Score = ACCURACY,
    rows: Iterable[Mapping[str, Any]] = (),
) -> Summary:
    """Summarise the finished cells of a run: one row per variant.

    Args:
        results: the contents of the `result.json` files (`variant`, `seed`, the score as a fraction). A cell
            whose score is not finite counts as missing.
        variants: all variants of the run, in order; those without a finished cell get an empty
            row. Default: the order of first appearance.
        score: the number to compare.
        rows: of `metrics.jsonl`, by which it is seen whether a network learned.

    Raises:
        CBAMError: there is nothing to summarise.
    """
    scores: dict[str, dict[int, float]] = {variant: {} for variant in variants or ()}
    results = list(results)
    for result in results:
        cell = scores.setdefault(result["variant"], {})
        if math.isfinite(result[score.key]):
            cell[int(result["seed"])] = float(result[score.key])
    if not scores:
        raise CBAMError("no variants to summarise: the run has no finished cell and names no variant")
    baseline = "none" if "none" in scores else next(iter(scores))
    control = "control" if "control" in scores and baseline != "control" else None
    summaries = tuple(_summarise_variant(variant, scores, baseline, control) for variant in scores)
    return Summary(summaries, baseline, control, problems=problems(results, rows, score.key), score=score)


def _summarise_variant(
    variant: str, scores: Mapping[str, Mapping[int, float]], baseline: str, control: str | None
) -> VariantSummary:
    own = scores[variant]
    seeds = tuple(sorted(own))
    accuracies = tuple(own[seed] for seed in seeds)

    def against(other: str | None) -> PairedDifference | None:
        if other is None or variant in (other, baseline):
            return None
        theirs = [scores[other].get(seed, math.nan) for seed in seeds]
        return paired_difference(accuracies, theirs)

    return VariantSummary(
        variant,
        seeds,
        accuracies,
        mean=statistics.fmean(accuracies) if accuracies else None,
        sd=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        to_baseline=against(baseline),
        to_control=against(control),
    )


def points(fraction: float) -> str:
    """Write a difference of accuracies as signed percentage points.

    >>> points(0.0123), points(-0.004), points(-0.000001)
    ('+1.23', '−0.40', '0.00')
    """
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def p_text(p_value: float) -> str:
    """Write a p value the way papers do.

    >>> p_text(0.0421), p_text(0.00002)
    ('p = 0.042', 'p < 0.001')
    """
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


COST_COLUMNS = ("parameters", "macs", "flops", "bytes_moved", "bytes_saved", "training_images_per_s")


def write_summary_csv(run_dir: Path, summary: Summary, score: Score = ACCURACY) -> Path:
    """Write `summary.csv` into the run folder: one row per variant, with the costs from `costs.json` if it exists.

    Scores and differences are fractions (0.01 = one percentage point); an empty field means unknown.
    """
    run_dir = Path(run_dir)
    costs_file = run_dir / "costs.json"
    costs = read_json(costs_file) if costs_file.exists() else {}
    batches = sorted({int(batch) for cost in costs.values() for batch in cost.get("latency", {})} or {1, 32})
    rows = [_csv_row(row, costs.get(row.variant, {}), score.word, batches) for row in summary.variants]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    target = run_dir / "summary.csv"
    write_atomically(target, text.getvalue())
    return target


def _csv_row(
    row: VariantSummary, cost: Mapping[str, Any], word: str, batches: Sequence[int]
) -> dict[str, Any]:
    word = word.replace(" ", "_")
    fields: dict[str, Any] = {
        "variant": row.variant,
        "seeds": len(row.seeds),
        f"mean_{word}": row.mean,
        f"sd_{word}": row.sd,
    }
    for name, difference in (("baseline", row.to_baseline), ("control", row.to_control)):
        for part in ("mean", "low", "high", "p_value", "n"):
            fields[f"to_{name}_{part}"] = getattr(difference, part, None)
    fields |= {name: cost.get(name) for name in COST_COLUMNS}
    for batch in batches:
        times = cost.get("latency", {}).get(str(batch), {})
        fields[f"latency_batch_{batch}_ms"] = times.get("median_ms")
    return fields
