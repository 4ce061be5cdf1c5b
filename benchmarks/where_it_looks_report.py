"""Text and plot of benchmarks/where_it_looks.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbam.attach.variants import label
from cbam.compare.statistics import paired_difference
from cbam.errors import CBAMError
from cbam.explain.scores import MEASURES
from cbam.files import write_atomically
from cbam.runs.markdown import wrap
from cbam.runs.tables import markdown

Seeds = list[dict[str, Any]]
NETWORKS = ("none", "se", "cbam", "untrained")
PAIRS = ("cbam-none", "cbam-se", "se-none")
BY_HAND = ("Prediction", "Reading it")
COLOURS = {"none": "#5c6470", "se": "#b84a00", "cbam": "#0a67b3"}
MARKERS = {"none": "o", "se": "^", "cbam": "D"}
COMMAND = "```\npython benchmarks/where_it_looks.py\n```"
INTRODUCTION = """ResNet-20 without attention, with SE and with CBAM, trained from scratch with {seeds} seeds on the
same 3,800 generated pictures of 32 x 32 pixels: one garment of four kinds, coloured and pasted on a photograph, so
that its mask is exact (`cbam detect generate`). The {images} validation pictures that are scored show at least half of
the garment after the centre crop; it covers {share:.0%} of what the networks see. Maps are Grad-CAM's of the right
class at the last stage, 8 x 8, enlarged bilinearly, whether the answer was right or not. *untrained* is the plain
network before its first step: what the picture alone gives away."""
PLOT = """![Differences between the scores of networks of {seeds} seeds, and the check with random
weights](where-it-looks/scores.svg)

Thin lines: one seed, with the 95 % bootstrap interval over the pictures. Thick lines: the mean over the seeds, with the
interval of the paired t test."""


def write_page(folder: Path) -> None:
    """Write where-it-looks.md beside the folder and the plot in it; what was written by hand stays.

    Args:
        folder: with seed0.json, ...
    """
    seeds = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    if not seeds:
        raise CBAMError(f"{folder} holds no scores yet: python benchmarks/where_it_looks.py")
    target = folder.with_suffix(".md")
    before = target.read_text() if target.exists() else ""
    draw(seeds, folder / "scores.svg")
    share, images = seeds[0]["chance"]["energy"], len(seeds[0]["images"])
    parts = [
        "# Does attention look at the object?",
        COMMAND,
        INTRODUCTION.format(seeds=len(seeds), images=images, share=share),
        *(by_hand(before, title) for title in BY_HAND),
        "## Scores\n\n" + scores_text(seeds),
        PLOT.format(seeds=len(seeds)),
        "## Random weights\n\n" + randomised_text(seeds),
        "## Spatial gates\n\n" + gates_text(seeds),
        seeds[0]["machine"],
    ]
    write_atomically(target, wrap("\n\n".join(part for part in parts if part)) + "\n")


def by_hand(page: str, title: str) -> str:
    """Return a section of an earlier page, empty if it has none."""
    found = re.search(rf"^## {title}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found.group().strip() if found else ""


def scores_text(seeds: Seeds) -> str:
    """Return the scores of all networks, and their paired differences."""
    heads = ["", "better", *(name_of(network) for network in NETWORKS), *(map(pair_name, PAIRS))]
    accuracy = [spread([100 * seed["accuracy"][network] for seed in seeds], 1) for network in NETWORKS[:3]]
    gaps = [
        gap_cell(
            [100 * seed["accuracy"][one] for seed in seeds],
            [100 * seed["accuracy"][other] for seed in seeds],
            1,
        )
        for one, other in (pair.split("-") for pair in PAIRS)
    ]
    rows = [["accuracy (%)", "more", *accuracy, "", *gaps]]
    for measure, (name, more) in MEASURES.items():
        means = {
            network: [seed["summary"][network][measure]["estimate"] for seed in seeds] for network in NETWORKS
        }
        gaps = []
        for pair in PAIRS:
            one, other = pair.split("-")
            clear = [sign(seed["differences"][pair][measure], more) for seed in seeds]
            gaps.append(f"{gap_cell(means[one], means[other])}; {clear.count(1)} : {clear.count(-1)}")
        rows.append([name, "more" if more else "less", *(spread(means[n]) for n in NETWORKS), *gaps])
    chance = seeds[0]["chance"]
    flat = sum(count for seed in seeds for title, count in seed["flat_maps"].items() if title != "untrained")
    note = (
        "± is the standard deviation over the seeds, [ ] the 95 % interval of the paired difference over the seeds (t "
        "test). Behind it: in how many seeds the bootstrap interval over the pictures says better, and in how many "
        f"worse. A map without information has {chance['energy']:.3f} of its energy in the object, and the middle of "
        f"the picture hits it with {chance['centre']:.3f}. Constant maps of trained networks, which count as misses: "
        f"{flat}."
    )
    return "\n".join([*markdown(heads, rows), "", note])


def sign(interval: dict[str, float], more: bool) -> int:
    """Return 1 if an interval says better, -1 for worse, 0 if it holds zero."""
    if interval["low"] <= 0 <= interval["high"]:
        return 0
    return 1 if (interval["low"] > 0) == more else -1


def randomised_text(seeds: Seeds) -> str:
    """Return how alike maps stay while the weights become random, from the output down."""
    steps = len(seeds[0]["randomised"]["none"])
    heads = ["random down to", *(name_of(network) for network in COLOURS)]
    rows = []
    for step in range(steps):
        cells = [
            spread([seed["randomised"][network][step]["similarity"] for seed in seeds], 2)
            for network in COLOURS
        ]
        module = seeds[0]["randomised"]["none"][step]["module"]
        rows.append([f"{step + 1} of {steps} (plain: `{module}`)", *cells])
    note = (
        "Rank correlation of a map with that of the trained network, mean over pictures and seeds ± standard deviation "
        "over the seeds (Adebayo et al. 2018); 1 would be a map that does not depend on the weights."
    )
    return "\n".join([*markdown(heads, rows), "", note])


def gates_text(seeds: Seeds) -> str:
    """Return how much the spatial gates differ between the object and what is around it."""
    heads = [
        "site",
        "gate, mean",
        "spread within a picture",
        "on the object minus beside it",
        "seeds above : below 0",
    ]
    rows = []
    for site in seeds[0]["spatial_gates"]:
        found = [seed["spatial_gates"][site] for seed in seeds]
        clear = [sign(each, True) for each in found]
        rows.append(
            [
                f"`{site}`",
                *(spread([each[key] for each in found]) for key in ("mean", "spread")),
                gap_cell([each["estimate"] for each in found], [0.0] * len(found)),
                f"{clear.count(1)} : {clear.count(-1)}",
            ]
        )
    return "\n".join(markdown(heads, rows))


def name_of(network: str) -> str:
    """Return what a network is called on the page."""
    return network if network == "untrained" else label(network)


def pair_name(pair: str) -> str:
    """Return what a difference is called.

    >>> pair_name("cbam-none")
    'CBAM − plain'
    """
    return " − ".join(label(network) for network in pair.split("-"))


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation."""
    text = f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
    return text.replace("-", "−")


def gap_cell(ours: list[float], theirs: list[float], digits: int = 3) -> str:
    """Return a paired difference with its interval over the seeds."""
    gap = paired_difference(ours, theirs)
    text = f"{gap.mean:+.{digits}f}"
    if gap.low is not None and gap.high is not None:
        text += f" [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]"
    return text.replace("-", "−")


def draw(seeds: Seeds, path: Path) -> None:
    """Draw the differences of all measures, and what random weights leave of the maps."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cbam", "font.size": 10}):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        draw_differences(left, seeds)
        draw_randomised(right, seeds)
        figure.savefig(path, metadata={"Date": None})


def draw_differences(axes: Axes, seeds: Seeds) -> None:
    """Draw CBAM minus plain and minus SE: every seed with its bootstrap interval, the mean with its t interval."""
    for row, (measure, (_, more)) in enumerate(MEASURES.items()):
        for pair, shift in (("cbam-none", -0.2), ("cbam-se", 0.2)):
            one, other = pair.split("-")
            gaps = [seed["differences"][pair][measure] for seed in seeds]
            sign_ = 1 if more else -1
            for number, gap in enumerate(gaps):
                y = row + shift + 0.26 * ((number + 0.5) / len(gaps) - 0.5)
                axes.plot(
                    [sign_ * gap["low"], sign_ * gap["high"]], [y, y], color=COLOURS[other], lw=0.7, alpha=0.6
                )
                axes.plot([sign_ * gap["estimate"]], [y], "|", color=COLOURS[other], ms=4)
            total = paired_difference(
                [sign_ * seed["summary"][one][measure]["estimate"] for seed in seeds],
                [sign_ * seed["summary"][other][measure]["estimate"] for seed in seeds],
            )
            if total.low is not None:
                axes.plot([total.low, total.high], [row + shift] * 2, color=COLOURS[other], lw=2.5, alpha=0.8)
            axes.plot(
                [total.mean], [row + shift], MARKERS[other], color=COLOURS[other],
                label=f"CBAM against {label(other)}" if row == 0 else None,
            )  # fmt: skip
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(MEASURES)), [name for name, _ in MEASURES.values()])
    axes.invert_yaxis()
    axes.set(xlabel="difference; to the right: CBAM is better")
    axes.grid(True, axis="x", alpha=0.3)
    axes.legend(loc=(0.01, 0.17), fontsize=8)


def draw_randomised(axes: Axes, seeds: Seeds) -> None:
    """Draw how alike maps stay, for each network over the part of the weights that is random."""
    for network, colour in COLOURS.items():
        curves = np.array(
            [[1.0, *(each["similarity"] for each in seed["randomised"][network])] for seed in seeds]
        )
        share = np.linspace(0, 100, curves.shape[1])
        for curve in curves:
            axes.plot(share, curve, color=colour, lw=0.6, alpha=0.5)
        axes.plot(
            share, curves.mean(0), MARKERS[network] + "-", color=colour, ms=5, lw=2, label=label(network)
        )
    axes.axhline(0, color="black", lw=1)
    axes.set(
        xlabel="weights made random (%)",
        ylabel="rank correlation with the trained map",
    )
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
