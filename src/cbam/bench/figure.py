"""The picture of a run: every module as a multiple of a plain copy of the map."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cbam.bench.baselines import COMPILED, COPY
from cbam.bench.cases import BOTH, FORWARD, Result
from cbam.bench.config import shape_text
from cbam.bench.summary import mean_ratio, providers, select
from cbam.files import write_atomically

_OURS, _THEIRS, _LIMIT = "#0a67b3", "#8a929c", "#3f4650"
_INK, _GRID = "#1c2026", "#dfe3e8"
_THICK = 0.38


def draw(results: Sequence[Result], folder: Path) -> Path | None:
    """Write `bench.png` and `bench.svg`; return the PNG's path, None without module rows."""
    modules = [result.of_way("") for result in select(results, "modules")]
    # Of several batches and types the first one measured, which is the most important.
    results = [
        r
        for r in modules
        if (r.case.shape[0], r.case.dtype) == (modules[0].case.shape[0], modules[0].case.dtype)
    ]
    modes = [mode for mode in (FORWARD, BOTH) if select(results, "modules", mode)]
    if not modes:
        return None
    with mpl.rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "cbam"}):
        names = _names([select(results, "modules", mode) for mode in modes])
        figure = Figure(figsize=(11, 1.9 + 0.42 * len(names)), dpi=110, layout="constrained")
        panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
        for axes, mode in zip(panels, modes, strict=True):
            _panel(axes, select(results, "modules", mode), names)
            axes.set_title(mode, loc="left", fontsize=10.5, fontweight="bold", color=_INK)
        figure.suptitle(_title(select(results, "modules")), x=0.01, ha="left", fontsize=11, color=_INK)
        for kind in ("svg", "png"):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
            write_atomically(folder / f"bench.{kind}", stream.getvalue())
    return folder / "bench.png"


def _names(panels: Sequence[Sequence[Result]]) -> list[str]:
    """Return the rows that the panels share: every name in one of them, the compiled ones last."""
    found = dict.fromkeys(name for results in panels for name in providers(results))
    return sorted((name for name in found if name != COPY), key=lambda name: name.endswith(COMPILED))


def _panel(axes: Axes, results: Sequence[Result], names: Sequence[str]) -> None:
    layouts = list(dict.fromkeys(result.case.memory_format for result in results))
    for number, layout in enumerate(layouts):
        found = [result for result in results if result.case.memory_format == layout]
        offset = (number - (len(layouts) - 1) / 2) * _THICK
        for row, name in enumerate(names):
            if name not in providers(found):
                continue
            colour = _OURS if name.startswith("cbam") else _LIMIT if name.startswith(COPY) else _THEIRS
            mean, y = mean_ratio(found, name), row + offset
            # From 1, so that a bar's length is the (logarithm of the) price over a copy.
            axes.barh(y, mean - 1, _THICK * 0.9, left=1, color=colour if number == 0 else _lighter(colour))
            single = [result.ratio(name) for result in found]
            axes.plot(single, [y] * len(single), "|", color=_INK, markersize=5, alpha=0.55)
            axes.annotate(
                f"{mean:.1f}" if mean < 100 else f"{mean:.0f}",
                (max(mean, 1.0, *single), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_INK,
            )
    axes.axvline(1, color=_INK, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    left, right = axes.get_xlim()
    axes.set_xlim(min(0.7, left), right * 1.5)
    decades = math.log10(axes.get_xlim()[1] / axes.get_xlim()[0])
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if decades < 2.8 else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("times a plain copy of the feature map (log scale; 1 = the copy)")


def _lighter(colour: str) -> tuple[float, ...]:
    return tuple(0.5 + 0.5 * part for part in to_rgb(colour))


def _title(results: Sequence[Result]) -> str:
    case = results[0].case
    shapes = ", ".join(dict.fromkeys(shape_text(result.case.shape[1:]) for result in results))
    layouts = list(dict.fromkeys(result.case.memory_format for result in results))
    bars = f"dark {layouts[0]}, light {layouts[1]}" if len(layouts) > 1 else layouts[0]
    threads = f", {case.threads} thread{'s' if case.threads > 1 else ''}" if case.threads else ""
    return (
        f"The cost of CBAM: geometric mean over {shapes} at N={case.shape[0]}, {case.dtype}{threads}\n"
        f"Blue: this library. Bars: {bars}; ticks: the single shapes."
    )
