"""Does it help? What a comparison shows in plain words, first what is broken, and no more than the data support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cbam.attach.variants import label
from cbam.compare.statistics import FEWEST_PAIRS, PairedDifference, Summary, VariantSummary, p_text, points

_NUMBERS = ("no", "one", "two")
_ADVICE = (
    "What to change: a lower rate (--lr), more epochs (--epochs), trained weights to start from (--pretrained or"
    " --weights FILE); are the labels right?"
)


@dataclass(frozen=True)
class Finding:
    """One claim and its evidence, a remark that `qualifies` the other claims, or a warning that something is broken."""

    claim: str
    evidence: tuple[str, ...] = ()
    qualifies: bool = False
    broken: bool = False

    def __str__(self) -> str:
        return "\n  ".join([f"{self.claim}.", *self.evidence])


def verdict(summary: Summary) -> str:
    """State in plain words what the run shows, and no more than the data support.

    >>> accuracies = {"none": [0.80, 0.82, 0.80], "se": [0.80, 0.82, 0.81], "cbam": [0.81, 0.82, 0.79]}
    >>> results = [
    ...     {"variant": variant, "seed": seed, "val_accuracy": accuracy}
    ...     for variant, row in accuracies.items()
    ...     for seed, accuracy in enumerate(row)
    ... ]
    >>> from cbam.compare.statistics import summarise
    >>> print(verdict(summarise(results)))  # doctest: +ELLIPSIS
    SE and CBAM: no measurable gain over the plain network.
      SE: +0.33 points against the plain network, 95 % interval −1.10 to +1.77, p = 0.42, 3 seeds
      CBAM: 0.00 points against the plain network, 95 % interval −2.48 to +2.48, p = 1.00, 3 seeds
    """
    return "\n".join(str(finding) for finding in findings(summary))


def findings(summary: Summary) -> list[Finding]:
    """Return the verdict claim by claim: what is broken, what holds for all, every variant, what qualifies them."""
    contenders = [row for row in summary.variants if row.variant not in (summary.baseline, summary.control)]
    if not summary[summary.baseline].seeds:
        return [Finding(f"No verdict yet: the baseline ({label(summary.baseline)}) has no finished seed")]
    found = broken(summary)
    if not contenders:
        nothing = f"Nothing to compare: {label(summary.baseline)} was run without any variant with attention"
        return [*found, Finding(nothing)]
    pairs = max(row.to_baseline.n for row in contenders if row.to_baseline is not None)
    if pairs == 0:
        nothing = "No verdict yet: no variant has finished a seed that the baseline has finished too"
        return [*found, Finding(nothing)]
    failed = {problem.variant for problem in summary.problems}
    if summary.baseline in failed:
        return found
    able = [row for row in contenders if row.variant not in failed]
    if able and pairs < FEWEST_PAIRS:
        seeds = f"{_NUMBERS[pairs]} seed{'s' if pairs > 1 else ''}"
        found.append(Finding(f"No claim can be made from {seeds}: an interval needs three or more"))
    return [*found, *_joined(able, summary, failed), *_qualifications(able, summary)]


def broken(summary: Summary) -> list[Finding]:
    """Return a finding that names the trainings that failed and says what to change; nothing where none did."""
    if not summary.problems:
        return []
    by_text: dict[tuple[str, str], list[int]] = {}
    for problem in summary.problems:
        by_text.setdefault((problem.variant, problem.text), []).append(problem.seed)
    lines = [
        f"{label(variant)}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {text}"
        for (variant, text), seeds in by_text.items()
    ]
    done, failed = sum(len(row.seeds) for row in summary.variants), len(summary.problems)
    names = list(dict.fromkeys(label(problem.variant) for problem in summary.problems))
    of = "attention" if summary.baseline in {one.variant for one in summary.problems} else _listed(names)
    claim = f"Broken: {failed} of {max(done, failed)} trainings failed, so there is no verdict on {of}"
    return [Finding(claim, (*lines, _ADVICE), broken=True)]


def _qualifications(able: Sequence[VariantSummary], summary: Summary) -> list[Finding]:
    outcomes = [_outcome(row.to_baseline) for row in able]
    found = []
    if "gain" in outcomes and summary.control is None:
        found.append("Without a control, a gain cannot be separated from the effect of more parameters")
    tested = [outcome for outcome in outcomes if outcome in ("gain", "loss", "nothing")]
    if len(tested) > 1 and set(tested) != {"nothing"}:
        found.append(f"{len(tested)} variants were tested, without correction for multiple tests")
    return [Finding(claim, qualifies=True) for claim in found]


# What may be said about one difference; `{}` is what was compared with.
_CLAIMS = {
    "gain": "measurable gain over {}",
    "loss": "measurably worse than {}",
    "nothing": "no measurable gain over {}",
    "equal": "no claim against {}",
    "few": "compared with {} in too few seeds",
    "missing": "no finished seed in common with {} yet",
}


def _outcome(difference: PairedDifference | None) -> str:
    if difference is None or difference.n == 0:
        return "missing"
    if difference.low is None or difference.high is None:
        return "equal" if difference.no_spread else "few"
    if difference.low <= 0 <= difference.high:
        return "nothing"
    return "gain" if difference.low > 0 else "loss"


def _joined(rows: Sequence[VariantSummary], summary: Summary, failed: set[str]) -> list[Finding]:
    """Say once what holds for several variants, with a line of evidence for each."""
    claims: dict[str, list[tuple[str, list[str]]]] = {}
    for row in rows:
        claim, evidence = _row_claim(row, summary, failed)
        claims.setdefault(claim, []).append((label(row.variant), evidence))
    found = []
    for claim, of in claims.items():
        names = [name for name, _ in of]
        lines = of[0][1] if len(of) == 1 else [f"{name}: {'; '.join(lines)}" for name, lines in of if lines]
        found.append(Finding(f"{_listed(names)}: {claim}", tuple(lines)))
    return found


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _row_claim(row: VariantSummary, summary: Summary, failed: set[str]) -> tuple[str, list[str]]:
    baseline = "the plain network" if summary.baseline == "none" else label(summary.baseline)
    outcome = _outcome(row.to_baseline)
    claim, evidence = _CLAIMS[outcome].format(baseline), [_evidence(row.to_baseline, baseline)]
    if row.to_control is not None and row.to_control.n >= FEWEST_PAIRS and summary.control not in failed:
        against_control = _outcome(row.to_control)
        if against_control == outcome:
            joint = "and" if outcome in ("gain", "loss") else "or"
            claim = _CLAIMS[outcome].format(f"{baseline} {joint} the control")
        else:
            claim += f", {_CLAIMS[against_control].format('the control')}"
            if outcome == "gain":
                claim += ": attention is not shown to add anything beyond extra parameters"
        evidence.append(_evidence(row.to_control, "the control"))
    return claim, [line for line in evidence if line]


def _evidence(difference: PairedDifference | None, against: str) -> str:
    if difference is None or difference.mean is None:
        return ""
    size = f"{points(difference.mean)} points against {against}"
    if difference.no_spread:
        return f"{size} in each of {difference.n} seeds: without spread there is no interval"
    seeds = f"{difference.n} seed{'' if difference.n == 1 else 's'}"
    if difference.p_value is None:
        return f"{size}, {seeds}"
    return f"{size}, 95 % interval {difference.in_words}, {p_text(difference.p_value)}, {seeds}"
