"""CBAM in networks deeper than the paper's 101 layers: what it costs a layer, gradients, gates, and whether they train.

    python benchmarks/depth.py --output runs/depth.jsonl            # about an hour with --threads 1
    python benchmarks/depth.py --output runs/depth.jsonl --report docs/results/depth.md
    python benchmarks/depth.py --tiny --output runs/tiny.jsonl      # does it all work here?

Each cell is one line of the file, written when it is done; the same command resumes. A file belongs to one set of
options and one version of torch: another needs another --output. Needs pip install '.[compare]'.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from depth_cells import QUARTERED, VARIANTS, Training, cost_cell, images_of, start_cell, train_cell
from depth_report import write_report

from cbam.runs.progress import Progress
from cbam.runs.rows import Rows

SMALL = ("resnet20", "resnet56", "resnet110", "resnet164", "resnet1001")
LARGE = ("paper_resnet50", "paper_resnet101", "paper_resnet152", "paper_resnet200")


@dataclass(frozen=True)
class Cell:
    """One thing to measure: "cost", "start" or "train", of a network, a variant and a seed."""

    kind: str
    model: str
    variant: str
    seed: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind} {self.model}, {self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Which cells there are, and how training goes in each."""

    cost: tuple[str, ...] = (*SMALL, *LARGE)
    start: tuple[str, ...] = (*SMALL, "paper_resnet152", "paper_resnet200")
    train: tuple[tuple[str, Training], ...] = (
        ("resnet20", Training()),
        ("resnet110", Training()),
        ("resnet1001", Training(steps=60, batch_size=16)),
        ("paper_resnet152", Training(steps=60, batch_size=8, image_size=64)),
        ("paper_resnet200", Training(steps=60, batch_size=8, image_size=64)),
    )
    start_seeds: int = 2
    train_seeds: tuple[int, ...] = (3, 3, 2, 1, 1)

    def cells(self) -> Iterator[Cell]:
        """Yield all cells, the cheap kinds first, the seeds outermost in each network."""
        for model in self.cost:
            # Where the gates start does not change what they cost, nor does a number.
            free = ("cbam, paper init", QUARTERED)
            yield from (Cell("cost", model, variant) for variant in VARIANTS if variant not in free)
        for model in self.start:
            for seed in range(self.start_seeds):
                yield from (Cell("start", model, variant, seed) for variant in VARIANTS if variant != "SE")
        for (model, _), seeds in zip(self.train, self.train_seeds, strict=True):
            for seed in range(seeds):
                yield from (Cell("train", model, variant, seed) for variant in VARIANTS if variant != "SE")


TINY = Grid(
    cost=("resnet20",),
    start=("resnet20",),
    train=(("resnet20", Training(steps=3, batch_size=4, limit_train=40, limit_val=20)),),
    start_seeds=1,
    train_seeds=(1,),
)


def main() -> int:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/depth.jsonl"))
    parser.add_argument("--data", default="fashion-mnist", help="images to start and train on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--tiny", action="store_true", help="a look at whether it works; the numbers mean nothing"
    )
    parser.add_argument("--report", type=Path, help="write text and plots from the file and run nothing")
    options = parser.parse_args()
    grid = TINY if options.tiny else Grid()
    if options.report:
        rows = Rows(options.output).read()
        write_report(about_of(rows), [row for row in rows if "kind" in row], options.report, options.output)
        return 0
    torch.set_num_threads(options.threads)
    run(grid, options.output, options.data, options.threads)
    return 0


def run(grid: Grid, output: Path, data: str, threads: int) -> None:
    """Measure the cells that the file lacks and append a line for each."""
    file = Rows(output)
    rows, about = file.read(), environment(grid, data, threads)
    before = about_of(rows)
    different = [key for key in about if key != "training" and before.get(key, about[key]) != about[key]]
    trained = before.get("training", {})
    different += [f"training of {one}" for one in trained if trained[one] != about["training"].get(one)]
    if different:
        sys.exit(f"{output} holds a run with other {', '.join(different)}. Give another --output.")
    file.mend()
    if before != about:  # the first time, and when the grid has grown since
        file.append(about)
    cells, done = list(grid.cells()), {cell_of(row) for row in rows if "kind" in row}
    with Progress() as progress:
        progress.start("cell", len(cells), len(done & set(cells)))
        for cell in cells:
            if cell in done:
                continue
            progress.begin(cell.name, cells.index(cell) + 1)
            start = time.perf_counter()
            found = measure(cell, grid, data)
            seconds = round(time.perf_counter() - start, 1)
            file.append({**asdict(cell), **found, "seconds": seconds})
            progress.end(f"{seconds} s")


def measure(cell: Cell, grid: Grid, data: str) -> dict[str, Any]:
    """Return what a cell finds."""
    if cell.kind == "cost":
        return cost_cell(cell.model, cell.variant)
    if cell.kind == "start":
        return start_cell(cell.model, cell.variant, cell.seed, data)
    return train_cell(cell.model, cell.variant, cell.seed, replace(dict(grid.train)[cell.model], data=data))


def environment(grid: Grid, data: str, threads: int) -> dict[str, Any]:
    """Return what the numbers depend on beside the cells."""
    return {
        # What was found under that name, which may be a stand-in.
        "data": images_of(data, 14, 100, 100).name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "training": {model: asdict(training) for model, training in grid.train},
    }


def about_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the numbers of a file depend on; the last word counts."""
    return next((row for row in reversed(rows) if "kind" not in row), {})


def cell_of(row: dict[str, Any]) -> Cell:
    """Return the cell that a row is about."""
    return Cell(row["kind"], row["model"], row["variant"], row["seed"])


if __name__ == "__main__":
    sys.exit(main())
