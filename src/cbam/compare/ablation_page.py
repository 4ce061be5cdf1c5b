"""The page of an ablation: our accuracies with spread next to the paper's errors, as Markdown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from cbam.compare.ablation import Ablation, AblationRow, ablations_of
from cbam.compare.reading import Run, read_run, telling_damage
from cbam.compare.statistics import PairedDifference, Summary, paired_difference, points, score_of, summarise
from cbam.compare.verdict import Finding, broken
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.markdown import wrap


def page(folder: Path) -> str:
    """Return the page of the run in `folder`, finished or not: every ablation whose networks the run names.

    Raises:
        CBAMError: the folder holds no run, or none of an ablation.
    """
    with telling_damage(Path(folder)):
        return _page(read_run(Path(folder)))


def _page(run: Run) -> str:
    ablations = ablations_of(run.variants)
    if not ablations:
        raise CBAMError(
            f"{run.folder} holds a run of {', '.join(run.variants)}: not an ablation. Give the folder of a run of"
            " `cbam ablate`"
        )
    summary = summarise(run.results, run.variants, score_of(run.data), run.rows)
    parts = [
        f"# The paper's ablations with {run.config.get('model')} on {run.data.get('name')}",
        f"```\n{shlex.join(map(str, run.environment.get('command', [])))}\n```",
        _recipe(run),
        tables_text(summary, ablations, heading="##"),
        _how_to_read(summary),
        machine_text(run),
    ]
    return wrap("\n\n".join(part for part in parts if part)) + "\n"


def write_page(folder: Path) -> Path:
    """Write `ablations.md` into a run's folder."""
    return write_atomically(Path(folder) / "ablations.md", page(folder))


def tables_text(summary: Summary, ablations: Sequence[Ablation], heading: str = "#") -> str:
    """Return one Markdown table per ablation, with its verdict and notes on the paper's figures."""
    parts = [_section(summary, ablation, heading) for ablation in ablations]
    return "\n\n".join([*map(_markdown, broken(summary)), *parts])


def _markdown(finding: Finding) -> str:
    return "\n".join([f"**{finding.claim}.**", "", *(f"- {line}" for line in finding.evidence)])


def _section(summary: Summary, ablation: Ablation, heading: str) -> str:
    chosen = next(row.label for row in ablation.rows if row.variant == ablation.choice)
    heads = ["network", f"{summary.score.word} (%)", "minus plain (points)", f"minus *{chosen}*"]
    heads += ["paper: top-1 error (%)", f"paper: minus *{chosen}*"]
    lines = [
        f"{heading} {ablation.title}",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|---|---|---|---|",
        *(_row(summary, ablation, row) for row in ablation.rows),
        "",
        _verdict(summary, ablation),
    ]
    if ablation.notes:
        lines += ["", "The paper's figures:", "", *(f"- {note}" for note in ablation.notes)]
    return "\n".join(lines)


def _row(summary: Summary, ablation: Ablation, row: AblationRow) -> str:
    ours = summary[row.variant]
    accuracy = "" if ours.mean is None else f"{100 * ours.mean:.2f}"
    if ours.sd is not None:
        accuracy += f" ± {100 * ours.sd:.2f}"
    printed, theirs = row.paper, next(r.paper for r in ablation.rows if r.variant == ablation.choice)
    error = f"{printed.top1:.2f}" if printed else ""
    # As a difference of accuracies, so that its sign has the same meaning as ours.
    gap = points((theirs.top1 - printed.top1) / 100) if printed and theirs and printed is not theirs else ""
    cells = [
        "plain" if row.variant == "none" else f"{row.label} (`{row.variant}`)",
        accuracy,
        gap_text(ours.to_baseline),
        gap_text(to_choice(summary, ablation, row)),
        error,
        gap,
    ]
    return f"| {' | '.join(cells)} |"


def to_choice(summary: Summary, ablation: Ablation, row: AblationRow) -> PairedDifference | None:
    """Return the paired difference between a network and the one that the paper chose; None for that one itself."""
    if row.variant == ablation.choice:
        return None
    ours, theirs = summary[row.variant], summary[ablation.choice]
    scores = dict(zip(theirs.seeds, theirs.accuracies, strict=True))
    return paired_difference(ours.accuracies, [scores.get(seed, math.nan) for seed in ours.seeds])


def gap_text(gap: PairedDifference | None) -> str:
    """Write a paired difference with its interval, in points; nothing where there is no pair."""
    if gap is None or gap.mean is None:
        return ""
    return f"{points(gap.mean)} {gap.bracketed}"


def _verdict(summary: Summary, ablation: Ablation) -> str:
    failed = {problem.variant for problem in summary.problems}
    if ablation.choice in failed:
        return "No claim can be made: the training of the paper's choice failed."
    able = [row for row in ablation.rows if row.variant not in failed]
    gaps = {row.label: to_choice(summary, ablation, row) for row in able}
    tested = {label: gap for label, gap in gaps.items() if gap is not None and gap.low is not None}
    if not tested:
        return "No claim can be made: there are not three seeds of two networks."
    chosen = next(row.label for row in ablation.rows if row.variant == ablation.choice)
    # Holm's correction: the smallest p value is tested at 5 % / number, the next at 5 % / (number - 1), ...
    apart, ordered = [], sorted(tested.items(), key=lambda item: item[1].p_value or 0.0)
    for position, (label, gap) in enumerate(ordered):
        if (gap.p_value or 0.0) > 0.05 / (len(ordered) - position):
            break
        apart.append(f"{label} ({points(gap.mean or 0)})")
    seeds = min(gap.n for gap in tested.values())
    if not apart:
        return (
            f"No network differs measurably from *{chosen}*, the paper's choice ({len(tested)} paired t tests, "
            f"{seeds} seeds, Holm's correction at 5 %)."
        )
    return (
        f"Measurably different from *{chosen}*, the paper's choice ({len(tested)} paired t tests, {seeds} seeds, "
        f"Holm's correction at 5 %): {', '.join(apart)}."
    )


def _recipe(run: Run) -> str:
    size = "x".join(map(str, run.data.get("input_size", [])))
    images = f"{run.data.get('train_images', 0):,} training and {run.data.get('val_images', 0):,} validation images"
    settings = run.config
    score = score_of(run.data).word
    text = (
        f"{images} of {run.data.get('name')} ({size}), {settings.get('epochs')} epochs, batch "
        f"{settings.get('batch_size')}, {settings.get('optimizer')} with peak rate {settings.get('lr')}, seeds 0 to "
        f"{settings.get('seeds', 1) - 1}; {score} after the last epoch. Every network of a seed starts from the same "
        "backbone and sees the same images in the same order. Attention is the authors' (preset `official`)."
    )
    if run.missing:
        text += f" **Unfinished:** {len(run.results)} of {len(run.planned)} trainings are done."
    return text


def _how_to_read(summary: Summary) -> str:
    sds = [row.sd for row in summary.variants if row.sd is not None]
    spread = ""
    if sds:
        middle = math.sqrt(sum(sd * sd for sd in sds) / len(sds))
        spread = (
            f" Here two trainings of one network that differ only in the seed are {100 * middle:.2f} points apart "
            "(standard deviation over all networks)."
        )
    return (
        "## How to read this\n\n"
        "± is the standard deviation over the seeds, [ ] the 95 % interval of the paired difference (t test over "
        "seeds). The paper's column is ImageNet-1K with ResNet-50, one run each, no spread given; its differences are "
        f"those of accuracy, so that + is better in both.{spread} The data are different and the network is far "
        "smaller: agreement or disagreement says little about ImageNet, and the absolute figures cannot be compared."
    )


def machine_text(run: Run) -> str:
    """Return the machine and the versions of a run, in a sentence."""
    machine, packages = run.environment.get("machine") or {}, run.environment.get("packages") or {}
    names = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "torchvision", "timm") if name in packages
    )
    where = machine.get("accelerator") or f"{machine.get('cpu')}, {machine.get('cores')} cores"
    sessions = 1 + len(run.environment.get("continued") or [])
    return f"Machine: {where}; {names}, Python {run.environment.get('python')}; {sessions} session(s)."
