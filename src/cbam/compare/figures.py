"""The figures of a report: seeds, differences, learning curves, classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cbam.attach.variants import label
from cbam.compare.statistics import ACCURACY, PairedDifference, Score, Summary, points
from cbam.compare.tables import ClassChange
from cbam.page.drawing import GRID, INK, MUTED, WIDTH, canvas, inline_svg, look, shortened, spread_labels

_ROW = 27.0
_LINE = 14.3


def seeds_figure(
    summary: Summary, score: Score = ACCURACY, levels: Mapping[str, float] | None = None
) -> Markup:
    """Draw every seed's score, one row per variant; a thin line joins the runs of the same seed.

    `levels` are scores that need no network, by name; they are drawn where they are near.
    """
    rows = [row for row in summary.variants if row.seeds]
    names = [label(row.variant) for row in rows]
    with canvas(_ROW * len(rows) + 46, left=_room(names, 108), right=12) as axes:
        for seed in sorted({seed for row in rows for seed in row.seeds}):
            path = [
                (100 * row.accuracies[row.seeds.index(seed)], y)
                for y, row in enumerate(rows)
                if seed in row.seeds
            ]
            axes.plot(*zip(*path, strict=True), color=MUTED, linewidth=0.8, alpha=0.45)
        for y, row in enumerate(rows):
            style = look(row.variant)
            scores = [100 * accuracy for accuracy in row.accuracies]
            axes.plot(scores, [y] * len(scores), style.marker, color=style.colour, markersize=6, alpha=0.8)
            if len(scores) > 1:
                axes.plot([100 * (row.mean or 0)] * 2, [y - 0.32, y + 0.32], color=INK, linewidth=2)
        _rows(axes, names)
        axes.set_xlabel(f"validation {score.word} (%)")
        axes.margins(x=0.06)
        near = _levels(axes, levels or {}, axes.get_xlim(), axes.axvline)
        values = "; ".join(
            f"{label(row.variant)} {', '.join(f'{100 * a:.2f}' for a in row.accuracies)}" for row in rows
        )
        return inline_svg(
            axes, "seeds", f"Validation {score.word} in percent, one mark per seed. {values}.{near}"
        )


def _levels(
    axes: Axes, levels: Mapping[str, float], limits: tuple[float, float], draw: Callable[..., Any]
) -> str:
    """Draw the levels that are within one width of what is shown; return them for the text alternative."""
    low, high = limits
    near = {name: 100 * level for name, level in levels.items() if 100 * level > low - (high - low)}
    for level in near.values():
        draw(level, color=INK, linewidth=1.2, linestyle=":")
    return "".join(f" {name.capitalize()} is {level:.2f}." for name, level in near.items())


def differences_figure(summary: Summary, score: Score = ACCURACY) -> Markup | None:
    """Draw the paired differences with their intervals, to the baseline and, where there is one, to the control."""
    rows = [(row, summary.baseline, row.to_baseline) for row in summary.variants]
    rows += [(row, summary.control or "", row.to_control) for row in summary.variants]
    drawn = [(row, other, gap) for row, other, gap in rows if gap is not None and gap.mean is not None]
    if not drawn:
        return None
    names = [f"{shortened(label(row.variant), 34)} − {label(other)}" for row, other, _ in drawn]
    with canvas(_ROW * len(drawn) + 46, left=_room(names, 138), right=12) as axes:
        axes.axvline(0, color=INK, linewidth=1)
        for y, (row, other, gap) in enumerate(drawn):
            style = look(row.variant)
            theirs = dict(zip(summary[other].seeds, summary[other].accuracies, strict=True))
            single = [
                100 * (a - theirs[s]) for s, a in zip(row.seeds, row.accuracies, strict=True) if s in theirs
            ]
            axes.plot(single, [y + 0.2] * len(single), "|", color=style.colour, markersize=7, alpha=0.9)
            ends = [100 * end for end in gap.bounds if end is not None]
            axes.plot(ends, [y] * len(ends), color=style.colour, linewidth=2.4, alpha=0.75)
            axes.plot([100 * (gap.mean or 0)], [y], style.marker, color=style.colour, markersize=7)
        _rows(axes, names)
        axes.set_xlabel(f"difference in {score.word} (points)", loc="right")
        axes.margins(x=0.06)
        _arrows(axes, [(look(row.variant).colour, gap) for row, _, gap in drawn])
        values = "; ".join(
            f"{label(row.variant)} minus {label(other)} {_with_interval(gap)}" for row, other, gap in drawn
        )
        return inline_svg(axes, "differences", f"Paired differences in percentage points. {values}.")


def _with_interval(gap: PairedDifference) -> str:
    return f"{points(gap.mean or 0)} ({gap.in_words})"


def _arrows(axes: Axes, rows: Sequence[tuple[str, PairedDifference]]) -> None:
    """Draw an arrow to the edge where an interval has no bound, lest the less certain looks the more certain."""
    low, high = axes.get_xlim()
    room = 0.08 * (high - low) if any(None in gap.bounds for _, gap in rows) else 0.0
    low, high = axes.set_xlim(low - room, high + room)
    style = {"arrowstyle": "->", "linewidth": 1.6, "alpha": 0.75, "shrinkA": 0, "shrinkB": 0}
    for y, (colour, gap) in enumerate(rows):
        for end, other, edge in zip(gap.bounds, gap.bounds[::-1], (low, high), strict=True):
            if end is None:
                start = 100 * (other if other is not None else gap.mean or 0)
                axes.annotate("", xy=(edge, y), xytext=(start, y), arrowprops={**style, "color": colour})


def _room(names: Sequence[str], least: float, *, bold: bool = False) -> float:
    """Return the margin that the longest of the names needs."""
    longest = max(map(len, names), default=0)
    return min(max(least, 22 + 7.1 * longest if bold else 10 + 6.2 * longest), 0.66 * WIDTH)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def curve_figure(
    history: dict[str, list[dict[str, Any]]],
    variants: Sequence[str],
    measure: str,
    title: str,
    percent: bool,
    levels: Mapping[str, float] | None = None,
) -> Markup | None:
    """Draw one measure per epoch: the mean over the seeds as a thick line, every seed as a thin one.

    The first fifth of the epochs may leave the axes, so that the differences at the end can be seen. `levels` are as
    for `seeds_figure`.
    """
    factor = 100 if percent else 1
    curves = {variant: _curves(history, variant, measure, factor) for variant in variants}
    curves = {variant: found for variant, found in curves.items() if found}
    if not curves:
        return None
    names = [label(variant) for variant in curves]
    height = max(240.0, 60 + _LINE * len(names))
    with canvas(height, left=40, right=_room(names, 104, bold=True)) as axes:
        ends = {}
        for variant, seeds in curves.items():
            style = look(variant)
            common = sorted(set.intersection(*(set(seed) for seed in seeds)))
            if len(seeds) > 1:
                for seed in seeds:
                    axes.plot(
                        *zip(*sorted(seed.items()), strict=True), color=style.colour, linewidth=0.8, alpha=0.4
                    )
            if not common:
                continue
            mean = [sum(seed[epoch] for seed in seeds) / len(seeds) for epoch in common]
            axes.plot(common, mean, color=style.colour, linewidth=2, linestyle=style.line)
            axes.plot(common[-1:], mean[-1:], style.marker, color=style.colour, markersize=5.5)
            ends[variant] = (common[-1], mean[-1])
        _limits(axes, curves)
        near = _levels(axes, levels or {}, axes.get_ylim(), axes.axhline)
        _end_labels(axes, ends, _LINE / (height - 42))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        values = "; ".join(f"{label(variant)} {value:.4g}" for variant, (_, value) in ends.items())
        return inline_svg(
            axes, measure.replace("_", "-"), f"{title} per epoch. Mean after the last epoch: {values}.{near}"
        )


def _curves(
    history: dict[str, list[dict[str, Any]]], variant: str, measure: str, factor: float
) -> list[dict[int, float]]:
    cells = [epochs for epochs in history.values() if epochs and epochs[0]["variant"] == variant]
    found = [
        {row["epoch"]: factor * row[measure] for row in epochs if _finite(row.get(measure))}
        for epochs in cells
    ]
    return [curve for curve in found if curve]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _limits(axes: Axes, curves: dict[str, list[dict[int, float]]]) -> None:
    last = max(epoch for seeds in curves.values() for seed in seeds for epoch in seed)
    start = math.ceil(last / 5) if last >= 5 else 1
    late = [
        value
        for seeds in curves.values()
        for seed in seeds
        for epoch, value in seed.items()
        if epoch >= start
    ]
    low, high = (min(late), max(late)) if late else axes.get_ylim()
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    margin = 0.02 * last if last > 1 else 0.5  # a single epoch is centred
    axes.set_xlim(1 - margin, last + margin)


def _end_labels(axes: Axes, ends: dict[str, tuple[int, float]], gap: float) -> None:
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low) for _, value in ends.values()]
    moved = spread_labels(heights, gap=gap, low=0.0, high=1.0)
    for (variant, (_, value)), height in zip(ends.items(), moved, strict=True):
        axes.annotate(
            label(variant),
            xy=(1.0, (value - low) / (high - low)),
            xytext=(1 + 11 / axes.bbox.width, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=look(variant).colour,
            va="center",
            fontweight="bold",
            arrowprops={
                "arrowstyle": "-",
                "color": GRID,
                "linewidth": 1,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def _with_count(change: ClassChange) -> str:
    return shortened(change.name) + ("" if change.images is None else f" ({change.images:,})")


def classes_figure(
    variant: str,
    changes: Sequence[ClassChange],
    baseline: str,
    limits: tuple[float, float],
    score: Score = ACCURACY,
) -> Markup:
    """Draw the change of single classes: the mean over the seeds, and a tick for every seed.

    `limits` are the smallest and the largest difference in all figures that share the scale.
    """
    longest = max(len(_with_count(change)) for change in changes)
    style = look(variant)
    with canvas(22 * len(changes) + 46, left=min(24 + 6.2 * longest, WIDTH / 2), right=12) as axes:
        axes.axvline(0, color=INK, linewidth=1)
        for y, change in enumerate(changes):
            single = [100 * value for value in change.differences]
            axes.plot([0, 100 * change.mean], [y, y], color=style.colour, linewidth=3, alpha=0.35)
            if len(single) > 1:
                axes.plot(single, [y] * len(single), "|", color=style.colour, markersize=9)
            axes.plot([100 * change.mean], [y], style.marker, color=style.colour, markersize=6)
        _rows(axes, [_with_count(change) for change in changes])
        axes.set_xlabel(f"{label(variant)} minus {label(baseline)} (points)")
        margin = 6 * (limits[1] - limits[0]) or 1.0
        axes.set_xlim(100 * limits[0] - margin, 100 * limits[1] + margin)
        values = "; ".join(f"{change.name} {points(change.mean)}" for change in changes)
        name = f"classes-{variant.replace(':', '-')}"
        return inline_svg(
            axes, name, f"Change of {score.word} per class in points, mean over the seeds. {values}."
        )
