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
from cbam.runs.formatting import counted
from cbam.runs.markdown import wrap

Rows = list[dict[str, Any]]
READING = "## Reading it"
COLOURS = {
    "plain": "#555555",
    QUARTERED: "#009e73",
    "cbam, identity init": "#0072b2",
    "cbam, paper init": "#d55e00",
}

WIDTHS = {"plain": 4}  # with identity init the gradients are the same: both lines are to be seen


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
    head = [
        "network",
        "blocks",
        "image",
        "variant",
        "M parameters",
        "G multiply-adds",
        "MB saved",
        "kB more a block",
    ]
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
        ends = [[gradient_at(row, place) for row in group] for place in (0.0, 0.5, 1.0)]
        ratio = [row["gradients"][0] / row["gradients"][-1] for row in group]
        gates = [mean_gate(row["gates"], key) for row in group for key in ("channel", "spatial")]
        shown = [f"{mean(values):.2e}" for values in ends]
        cells = [model, variant, *shown, f"{mean(ratio):.3g}"]
        cells += gate_cells([row["gates"] for row in group]) if any(gates) else ["", ""]
        table.append(cells)
    head = ["network", "variant", "first block", "middle", "last", "first / last",
            "saturated, channel / spatial (%)", "dead, channel / spatial (%)"]  # fmt: skip
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
    head = [
        "network",
        "variant",
        "seeds",
        "diverged",
        "loss, last 10 steps",
        "accuracy (%)",
        "minus plain (points)",
    ]
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
                centre = [
                    f"{mean(mean_gate(gates, f'{k} mean') for gates in found):.2f}"
                    for k in ("channel", "spatial")
                ]
                table.append([model, variant, when, " / ".join(centre), *gate_cells(found)])
    head = ["network", "variant", "step", "mean, channel / spatial", "saturated, channel / spatial (%)",
            "dead, channel / spatial (%)"]  # fmt: skip
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

    def draw(axes: Any, group: Rows, variant: str) -> None:
        for row in group:
            depth = [index / max(1, len(row["gradients"]) - 1) for index in range(len(row["gradients"]))]
            axes.semilogy(
                depth,
                row["gradients"],
                color=COLOURS[variant],
                alpha=0.7,
                lw=WIDTHS.get(variant, 1),
                label=label(row, variant),
            )
        axes.set_xlabel("depth (0: first block, 1: last)")

    draw_all(rows, path, draw, "|gradient| / |weights|")


def plot_gates(rows: Rows, path: Path) -> None:
    """Draw the share of dead channel gates of every block after training."""

    def draw(axes: Any, group: Rows, variant: str) -> None:
        for row in group:
            gates = row["gates"].get("last") or []
            depth = [index / max(1, len(gates) - 1) for index in range(len(gates))]
            values = [100 * gate["channel dead"] for gate in gates]
            axes.plot(depth, values, color=COLOURS[variant], alpha=0.7, lw=1, label=label(row, variant))
        axes.set_xlabel("depth (0: first block, 1: last)")

    draw_all(
        [row for row in rows if row["gates"].get("first")], path, draw, "dead channel gates, last step (%)"
    )


def plot_training(rows: Rows, path: Path) -> None:
    """Draw the loss of every step, averaged over ten."""

    def draw(axes: Any, group: Rows, variant: str) -> None:
        for row in group:
            losses = row["losses"]
            smooth = [mean(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
            axes.plot(smooth, color=COLOURS[variant], alpha=0.7, lw=1, label=label(row, variant))
        axes.set_xlabel("step")

    draw_all(rows, path, draw, "training loss, mean of 10 steps")


def draw_all(rows: Rows, path: Path, draw: Callable[[Any, Rows, str], None], what: str) -> None:
    """Draw one panel for each network."""
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
            if name == model:
                draw(axes, group, variant)
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


def label(row: dict[str, Any], variant: str) -> str:
    """Name a curve once, not once for each seed."""
    return variant if row["seed"] == 0 else "_" + variant


def grouped(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Return the rows of each (network, variant), the networks in their order, the variants in that of VARIANTS."""
    groups: dict[tuple[str, str], Rows] = defaultdict(list)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in sorted(rows, key=lambda row: (models.index(row["model"]), [*VARIANTS].index(row["variant"]))):
        groups[row["model"], row["variant"]].append(row)
    return groups


def gradient_at(row: dict[str, Any], place: float) -> float:
    """Return the gradient of the block at a relative depth."""
    return row["gradients"][round(place * (len(row["gradients"]) - 1))]


def mean_gate(gates: Rows, key: str) -> float:
    """Return the mean over blocks of all entries whose name begins with `key`; 0 for no gates."""
    values = [value for gate in gates for name, value in gate.items() if name.startswith(key)]
    return mean(values) if values else 0.0


def gate_cells(found: list[Rows], keys: tuple[str, ...] = ("saturated", "dead")) -> list[str]:
    """Return means and, in percent, saturated and dead shares, channel / spatial."""
    cells = []
    for key in keys:
        both = [mean(mean_gate(gates, f"{kind} {key}") for gates in found) for kind in ("channel", "spatial")]
        cells.append(" / ".join(f"{v:.2f}" if key == "mean" else f"{100 * v:.1f}" for v in both))
    return cells


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


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
