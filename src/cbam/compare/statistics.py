"""Does it help? Means, spread and paired differences over seeds, and a verdict that the numbers support."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.attach.variants import label
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


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (ours - theirs) over the seeds that both have, with its t interval.

    `low`, `high` and `p_value` are None where no interval exists: fewer than two pairs, or no spread at all
    (`no_spread`), where an interval of zero width would claim certainty. `mean` is None
    without a pair.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    no_spread: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t interval clipped to [-1, 1]; None if there is none or if it covers all of that.

        >>> PairedDifference(0.1, -1.3, 0.4, 2, 0.3).interval, PairedDifference(0.1, -1.3, 1.2, 2, 0.3).interval
        ((-1.0, 0.4), None)
        """
        if self.low is None or self.high is None or (self.low <= -1 and self.high >= 1):
            return None
        return max(self.low, -1.0), min(self.high, 1.0)

    @property
    def unbounded(self) -> bool:
        """Whether the t interval covers every possible difference, as it can with two seeds that disagree."""
        return self.low is not None and self.interval is None


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
    if len(pairs) < 2:
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
    """All variants of a run, in the order given, and what they are compared with."""

    variants: tuple[VariantSummary, ...]
    baseline: str
    control: str | None
    confidence: float = 0.95

    def __getitem__(self, variant: str) -> VariantSummary:
        return next(row for row in self.variants if row.variant == variant)


def summarise(
    results: Iterable[Mapping[str, Any]], variants: Sequence[str] | None = None, score: Score = ACCURACY
) -> Summary:
    """Summarise the finished cells of a run: one row per variant.

    Args:
        results: the contents of the `result.json` files (`variant`, `seed`, the score as a fraction). A cell
            whose score is not finite counts as missing.
        variants: all variants of the run, in order; those without a finished cell get an empty
            row. Default: the order of first appearance.
        score: the number to compare.

    Raises:
        CBAMError: there is nothing to summarise.
    """
    scores: dict[str, dict[int, float]] = {variant: {} for variant in variants or ()}
    for result in results:
        cell = scores.setdefault(result["variant"], {})
        if math.isfinite(result[score.key]):
            cell[int(result["seed"])] = float(result[score.key])
    if not scores:
        raise CBAMError("no variants to summarise: the run has no finished cell and names no variant")
    baseline = "none" if "none" in scores else next(iter(scores))
    control = "control" if "control" in scores and baseline != "control" else None
    rows = tuple(_summarise_variant(variant, scores, baseline, control) for variant in scores)
    return Summary(rows, baseline, control)


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


@dataclass(frozen=True)
class Finding:
    """One claim and its evidence, or a remark that `qualifies` the other claims."""

    claim: str
    evidence: tuple[str, ...] = ()
    qualifies: bool = False

    def __str__(self) -> str:
        return f"{self.claim} ({'; '.join(self.evidence)})." if self.evidence else f"{self.claim}."


def verdict(summary: Summary) -> str:
    """State in plain words what the run shows, and no more than the data support.

    >>> accuracies = {"none": [0.80, 0.82, 0.80], "cbam": [0.81, 0.82, 0.79]}
    >>> results = [
    ...     {"variant": variant, "seed": seed, "val_accuracy": accuracy}
    ...     for variant, row in accuracies.items()
    ...     for seed, accuracy in enumerate(row)
    ... ]
    >>> print(verdict(summarise(results)))  # doctest: +ELLIPSIS
    CBAM: no measurable gain over the plain network (0.00 points against the plain network, 95 % interval ... 3 seeds).
    """
    return " ".join(str(finding) for finding in findings(summary))


def findings(summary: Summary) -> list[Finding]:
    """Return the verdict claim by claim: first what holds for all, then every variant, then what qualifies them."""
    contenders = [row for row in summary.variants if row.variant not in (summary.baseline, summary.control)]
    if not summary[summary.baseline].seeds:
        return [Finding(f"No verdict yet: the baseline ({label(summary.baseline)}) has no finished seed")]
    if not contenders:
        return [
            Finding(
                f"Nothing to compare: {label(summary.baseline)} was run without any variant with attention"
            )
        ]
    pairs = max(row.to_baseline.n for row in contenders if row.to_baseline is not None)
    if pairs == 0:
        return [Finding("No verdict yet: no variant has finished a seed that the baseline has finished too")]
    found = [Finding("No claim can be made from one seed")] if pairs == 1 else []
    found += [_row_finding(row, summary) for row in contenders]
    if pairs == 2:
        found.append(
            Finding("Two seeds are the minimum for an interval: take this as a hint", qualifies=True)
        )
    outcomes = [_outcome(row.to_baseline) for row in contenders]
    if "gain" in outcomes and summary.control is None:
        found.append(
            Finding(
                "Without a control, a gain cannot be separated from the effect of more parameters",
                qualifies=True,
            )
        )
    tested = [outcome for outcome in outcomes if outcome in ("gain", "loss", "nothing")]
    if len(tested) > 1 and set(tested) != {"nothing"}:
        found.append(
            Finding(
                f"{len(tested)} variants were tested, without correction for multiple tests", qualifies=True
            )
        )
    return found


# What may be said about one difference; `{}` is what was compared with.
_CLAIMS = {
    "gain": "measurable gain over {}",
    "loss": "measurably worse than {}",
    "nothing": "no measurable gain over {}",
    "equal": "no claim against {}",
    "single": "compared with {} in one pair of runs only",
    "missing": "no finished seed in common with {} yet",
}


def _outcome(difference: PairedDifference | None) -> str:
    if difference is None or difference.n == 0:
        return "missing"
    if difference.low is None or difference.high is None:
        return "equal" if difference.no_spread else "single"
    if difference.low <= 0 <= difference.high:
        return "nothing"
    return "gain" if difference.low > 0 else "loss"


def _row_finding(row: VariantSummary, summary: Summary) -> Finding:
    baseline = "the plain network" if summary.baseline == "none" else label(summary.baseline)
    outcome = _outcome(row.to_baseline)
    claim, evidence = _CLAIMS[outcome].format(baseline), [_evidence(row.to_baseline, baseline)]
    if row.to_control is not None and row.to_control.n > 1:
        against_control = _outcome(row.to_control)
        if against_control == outcome:
            joint = "and" if outcome in ("gain", "loss") else "or"
            claim = _CLAIMS[outcome].format(f"{baseline} {joint} the control")
        else:
            claim += f", {_CLAIMS[against_control].format('the control')}"
            if outcome == "gain":
                claim += ": attention is not shown to add anything beyond extra parameters"
        evidence.append(_evidence(row.to_control, "the control"))
    return Finding(f"{label(row.variant)}: {claim}", tuple(line for line in evidence if line))


def _evidence(difference: PairedDifference | None, against: str) -> str:
    if difference is None or difference.mean is None:
        return ""
    size = f"{points(difference.mean)} points against {against}"
    if difference.no_spread:
        return f"{size} in each of {difference.n} seeds: without spread there is no interval"
    if difference.low is None or difference.high is None or difference.p_value is None:
        return f"{points(difference.mean)} points"
    interval = "95 % interval without bounds"
    if difference.interval is not None:
        interval = "95 % interval {} to {}".format(*map(points, difference.interval))
    return f"{size}, {interval}, {p_text(difference.p_value)}, {difference.n} seeds"


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
