"""Text and plots of benchmarks/depth.py."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from depth_cells import QUARTERED, VARIANTS

from cbam.files import write_atomically
from cbam.formatting import counted
from cbam.runs.markdown import wrap
from cbam.runs.tables import markdown

Rows = list[dict[str, Any]]
READING = "## Reading it"
COLOURS = {
    "plain": "#555555",
    QUARTERED: "#009e73",
    "cbam, identity init": "#0072b2",
    "cbam, paper init": "#d55e00",
}
DEPTH = "depth (0: first block, 1: last)"


def write_report(about: dict[str, Any], cells: Rows, target: Path, source: Path) -> None:
    """Write the report and its plots; what stands under "Reading it" in an earlier report is kept."""
    if not cells:
        raise SystemExit(f"{source} holds nothing yet: run the study first.")
    kinds = {kind: [row for row in cells if row["kind"] == kind] for kind in ("cost", "start", "train")}
    pictures = target.parent.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    plot_gradients(kinds["start"], pictures / "depth-gradients.png")
    plot_gates(kinds["train"], pictures / "depth-gates.png")
    plot_training(kinds["train"], pictures / "depth-training.png")
    parts = [
        "# Deeper than the paper: CBAM in 152, 200 and 1001 layers",
        "",
        *introduction(about, cells),
        *reading(target),
        *costs(kinds["cost"]),
        *starts(kinds["start"]),
        *trainings(kinds["train"], about),
        *after_training(kinds["train"]),
    ]
    write_atomically(target, wrap("\n".join(parts).rstrip()) + "\n")


def introduction(about: dict[str, Any], cells: Rows) -> list[str]:
    """Return how the numbers came about."""
    minutes = sum(row["seconds"] for row in cells) / 60
    return [
        "```",
        f"python benchmarks/depth.py --threads {about['threads']} --output runs/depth.jsonl",
        "python benchmarks/depth.py --output runs/depth.jsonl --report docs/results/depth.md",
        "```",
        "",
        (
            f"{len(cells)} cells, {minutes:.0f} minutes in all, {counted(about['threads'], 'thread')}; "
            f"{about['machine']}, torch {about['torch']}, Python {about['python']}; images: {about['data']}. "
            "The paper stops at 101 layers. "
            "`paper_resnetN` are its ImageNet ResNets, resnet20, 56 and 110 the basic-block ResNets for 32 x 32 "
            "images, resnet164 and 1001 those with pre-activation bottlenecks. CBAM is the preset `paper` at the end "
            "of every residual branch, r = 16, k = 7; *branches / 4* is the plain network with every branch's output "
            "multiplied by 1/4 there, the control for what two fresh sigmoids do on average; *identity init* starts "
            "with gates of exactly 1, *paper init* "
            "with fresh sigmoids. All variants of a seed have the same weights outside the gates and see the same "
            "images."
        ),
        "",
    ]


def reading(target: Path) -> list[str]:
    """Return the section that a person has written, if there is one."""
    if not target.exists() or READING not in target.read_text(encoding="utf-8"):
        return []
    text = target.read_text(encoding="utf-8").partition(READING)[2]
    return [READING, text.partition("\n## ")[0].rstrip().lstrip("\n").join(("\n", "")), ""]


def costs(rows: Rows) -> list[str]:
    """Return the table of what a block's attention costs."""
    by_model: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        by_model[row["model"]][row["variant"]] = row
    table = []
    for model, found in by_model.items():
        plain, blocks = found["plain"], found["plain"]["blocks"]
        for variant, row in found.items():
            cells = [model, str(blocks), "x".join(map(str, row["input"]))] if row is plain else ["", "", ""]
            cells.append("CBAM" if variant.startswith("cbam") else variant)
            for key, unit, digits in (("parameters", 1e6, 3), ("macs", 1e9, 3), ("bytes_saved", 1e6, 1)):
                cells.append(f"{row[key] / unit:,.{digits}f}{share(row[key], plain[key])}")
            each = (row["bytes_saved"] - plain["bytes_saved"]) / blocks
            cells.append("" if row is plain else f"{each / 1e3:,.1f}")
            table.append(cells)
    head = columns(
        "network | blocks | image | variant | M parameters | G multiply-adds | MB saved | kB more a block"
    )
    return [
        "## What it costs",
        "",
        "One image, forward; MB saved is what autograd keeps for backward (`cbam.cost`), as the code runs here.",
        "",
        *markdown(head, table),
        "",
    ]


def starts(rows: Rows) -> list[str]:
    """Return the table of first gradients and gates."""
    table = []
    for (model, variant), group in grouped(rows).items():
        count = len(group[0]["gradients"]) - 1
        ends = [[row["gradients"][round(at * count)] for row in group] for at in (0.0, 0.5, 1.0)]
        ratio = [row["gradients"][0] / row["gradients"][-1] for row in group]
        gates = [mean_gate(row["gates"], key) for row in group for key in ("channel", "spatial")]
        shown = [f"{mean(values):.2e}" for values in ends]
        cells = [model, variant, *shown, f"{mean(ratio):.3g}"]
        cells += gate_cells([row["gates"] for row in group]) if any(gates) else ["", ""]
        table.append(cells)
    head = columns(
        "network | variant | first block | middle | last | first / last | "
        "saturated, channel / spatial (%) | dead, channel / spatial (%)"
    )
    return [
        "## Gradients and gates before training",
        "",
        (
            "Norm of the gradient over norm of the weights of a block's convolutions, mean over the seeds. Saturated: "
            "sigmoids below 0.05 or above 0.95. Dead: gates that differ by less than 0.01 between all images of the "
            "batch; with identity init all are, by design, as they read nothing yet."
        ),
        "",
        *markdown(head, table),
        "",
        "![gradient by depth](../images/depth-gradients.png)",
        "",
    ]


def trainings(rows: Rows, about: dict[str, Any]) -> list[str]:
    """Return the table of short trainings."""
    groups, table = grouped(rows), []
    for (model, variant), group in groups.items():
        plain = {row["seed"]: row for row in groups.get((model, "plain"), [])}
        pairs = [100 * (r["accuracy"] - plain[r["seed"]]["accuracy"]) for r in group if r["seed"] in plain]
        finite = [row for row in group if math.isfinite(row["losses"][-1])]
        table.append([
            model, variant, str(len(group)), str(len(group) - len(finite)),
            spread([mean(row["losses"][-10:]) for row in finite], 3),
            spread([100 * row["accuracy"] for row in group], 1),
            "" if variant == "plain" else spread(pairs, 1, sign="+"),
        ])  # fmt: skip
    recipes = [
        f"{model}: {s['steps']} steps of {s['batch_size']} images of {s['image_size']} x {s['image_size']}, peak rate "
        f"{s['lr']}"
        for model, s in about["training"].items()
    ]
    head = columns(
        "network | variant | seeds | diverged | loss, last 10 steps | accuracy (%) | minus plain (points)"
    )
    return [
        "## Do they train?",
        "",
        "A small budget, far from convergence, the same for all variants. Mean ± sd over the seeds. "
        + "; ".join(recipes)
        + ".",
        "",
        *markdown(head, table),
        "",
        "![loss](../images/depth-training.png)",
        "",
    ]


def after_training(rows: Rows) -> list[str]:
    """Return the table of what gates do in the course of training."""
    table = []
    for (model, variant), group in grouped(rows).items():
        for when in ("first", "middle", "last"):
            found = [row["gates"][when] for row in group if row["gates"].get(when)]
            if found:
                gate_means = [[mean_gate(g, f"{k} mean") for g in found] for k in ("channel", "spatial")]
                centre = [f"{mean(values):.2f}" for values in gate_means]
                table.append([model, variant, when, " / ".join(centre), *gate_cells(found)])
    head = columns(
        "network | variant | step | mean, channel / spatial | saturated, channel / spatial (%) | "
        "dead, channel / spatial (%)"
    )
    return [
        "## Gates while training",
        "",
        "Sigmoids before their scale (2 with identity init), mean over blocks and seeds.",
        "",
        *markdown(head, table),
        "",
        "![gates by depth](../images/depth-gates.png)",
        "",
    ]


def plot_gradients(rows: Rows, path: Path) -> None:
    """Draw the relative gradient of every block."""
    draw_all(rows, path, lambda row: row["gradients"], "|gradient| / |weights|", DEPTH, log=True)


def plot_gates(rows: Rows, path: Path) -> None:
    """Draw the share of dead channel gates of every block after training."""
    rows = [row for row in rows if row["gates"].get("first")]
    dead = "dead channel gates, last step (%)"
    draw_all(
        rows, path, lambda row: [100 * g["channel dead"] for g in row["gates"].get("last") or []], dead, DEPTH
    )


def plot_training(rows: Rows, path: Path) -> None:
    """Draw the loss of every step, averaged over ten."""

    def smooth(row: dict[str, Any]) -> list[float]:
        return [mean(row["losses"][max(0, i - 9) : i + 1]) for i in range(len(row["losses"]))]

    draw_all(rows, path, smooth, "training loss, mean of 10 steps", "step")


def draw_all(
    rows: Rows, path: Path, values: Callable[[Any], list[float]], what: str, along: str, log: bool = False
) -> None:
    """Draw one panel for each network: a line for each variant and seed, along the depth or the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = grouped(rows)
    models = list(dict.fromkeys(model for model, _ in groups))
    if not models:
        return
    lines = -(-len(models) // 4)
    columns = -(-len(models) // lines)
    figure, panels = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.8 * lines), squeeze=False)
    for axes, model in zip(panels.flat, models, strict=False):
        for (name, variant), group in groups.items():
            for row in group if name == model else []:
                y = values(row)
                x = [i / max(1, len(y) - 1) if along == DEPTH else i for i in range(len(y))]
                # With identity init the gradients are those of plain: both lines are to be seen.
                wide = 4 if log and variant == "plain" else 1
                label = variant if row["seed"] == 0 else "_" + variant  # once, not once for each seed
                axes.plot(x, y, color=COLOURS[variant], alpha=0.7, lw=wide, label=label)
        axes.set_yscale("log" if log else "linear")
        axes.set_xlabel(along)
        axes.set_title(model, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(models) :]:
        axes.set_visible(False)
    panels[0][0].legend(fontsize=8)
    for line in panels:
        line[0].set_ylabel(what, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def grouped(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Return the rows of each (network, variant), the networks in their order, the variants in that of VARIANTS."""
    groups: dict[tuple[str, str], Rows] = defaultdict(list)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in sorted(rows, key=lambda row: (models.index(row["model"]), [*VARIANTS].index(row["variant"]))):
        groups[row["model"], row["variant"]].append(row)
    return groups


def mean_gate(gates: Rows, key: str) -> float:
    """Return the mean over blocks of all entries whose name begins with `key`; 0 for no gates."""
    values = [value for gate in gates for name, value in gate.items() if name.startswith(key)]
    return mean(values) if values else 0.0


def gate_cells(found: list[Rows]) -> list[str]:
    """Return saturated and dead shares in percent, channel / spatial."""
    cells = []
    for key in ("saturated", "dead"):
        both = [mean(mean_gate(gates, f"{kind} {key}") for gates in found) for kind in ("channel", "spatial")]
        cells.append(" / ".join(f"{100 * value:.1f}" for value in both))
    return cells


def columns(text: str) -> list[str]:
    """Return the headings of a table."""
    return text.split(" | ")


def share(value: float, base: float) -> str:
    """Return by how much a value is above its base, in percent."""
    return "" if value == base else f" ({(value - base) / base:+.1%})"


def spread(values: Iterable[float], digits: int, sign: str = "") -> str:
    """Return mean ± standard deviation."""
    found = list(values)
    if not found:
        return ""
    deviation = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):{sign}.{digits}f}{deviation}"
