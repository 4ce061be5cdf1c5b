"""Draw docs/images/speed-gpu.svg from the first table of docs/results/gpu/README.md: `python docs/speed.py`."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
MILLISECONDS = re.compile(r"([\d.]+) ms")


def rows(text: str) -> list[tuple[str, float, str, float]]:
    """Return (what, ours / plain, the other way, its time / plain) of every row of the first table."""
    table = text.partition("\n|---")[2].partition("\n\n")[0]
    found = []
    for line in table.splitlines()[1:]:
        what, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        plain, ours, other = (float(MILLISECONDS.search(cell)[1]) for cell in cells)
        name = MILLISECONDS.split(cells[2])[0].split(",")[0].strip(" :")
        found.append((what.replace("`", ""), ours / plain, name, other / plain))
    return found


def draw(found: list[tuple[str, float, str, float]], to: Path) -> None:
    """Draw two bars for each row: ours and the other way, in times of the plain network."""
    plt.rcParams.update(
        {"svg.hashsalt": "cbam", "font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(figsize=(8, 0.62 * len(found) + 0.7), layout="constrained")
    for place, (_, ours, name, other) in enumerate(found):
        for shift, value, colour, label in (
            (-0.2, ours, "#c2410c", "this library"),
            (0.2, other, "#a8a29e", name),
        ):
            axes.barh(place + shift, value, 0.36, color=colour)
            axes.text(value + 0.03, place + shift, f"{value:.2f}  {label}", va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        yticks=range(len(found)), yticklabels=[row[0] for row in found], xlabel="times the plain network"
    )
    axes.set_xlim(0, max(max(row[1], row[3]) for row in found) * 1.35)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(to, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    draw(rows((DOCS / "results/gpu/README.md").read_text(encoding="utf-8")), DOCS / "images/speed-gpu.svg")
