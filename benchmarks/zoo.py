"""Attach CBAM to every convolutional model of torchvision, timm and others, and check what `attach` promises.

    python benchmarks/zoo.py --library torchvision --output runs/zoo.jsonl
    python benchmarks/zoo.py --report docs/zoo.md --output runs/zoo.jsonl

With random weights and a small image: sites are found; every output is the same bit for bit; one training step moves
all gates; the old state dict loads; `detach` gives the model back. Each model runs in a process of its own with a time
limit; the same command resumes. Needs pip install '.[compare]', smp, transformers and monai also their packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import cbam
from cbam.runs.pool import Answer, Task, run_tasks, worker_pool
from cbam.runs.progress import Progress
from cbam.runs.rows import Rows
from cbam.runs.tables import markdown

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.zoo.checks import LIBRARIES, check, models

SECONDS = 900
_INTRODUCTION = (
    "A model passes if sites are found, every output is the same bit for bit after attaching, a training step",
    "moves the gates at every site, the old state dict loads, and `detach` gives the model back. Random weights,",
    "small images.",
)


def main() -> int:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--library", choices=[*LIBRARIES, "all"], default="all")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--output", type=Path, default=Path("runs/zoo.jsonl"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, help="write the table and run nothing")
    options = parser.parse_args()
    rows = Rows(options.output)
    if options.report:
        options.report.write_text(report(rows.read()), encoding="utf-8")
        return 0
    rows.mend()
    done = {(row["library"], row["model"]) for row in rows.read()}
    chosen = [m for m in models(options.library) if options.only in m[1] or m in done]
    tasks = [Task(" ".join(model), check, model, limit=SECONDS) for model in chosen if model not in done]

    def keep(task: Task, answer: Answer) -> None:
        library, name = task.arguments
        found = {"library": library, "model": name, "seconds": answer.seconds, "family": "", "sites": 0}
        row = {**found, "convolutional": True, "reason": answer.error, **(answer.result or {})}
        rows.append(row)
        progress.begin(task.name)
        progress.end(f"{row['reason'] or 'passes'} ({answer.seconds:.0f} s)")

    with Progress() as progress, worker_pool(min(options.processes, len(tasks))) as workers:
        progress.start("model", len(chosen), len(chosen) - len(tasks))
        run_tasks(tasks, workers, keep)
    return 0


def version_of(library: str) -> str:
    """Return the version of a library, or an empty text where it is not installed."""
    package = {"smp": "segmentation_models_pytorch"}.get(library, library)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table by family, and every failure with its reason."""
    lines = ["# The zoo: attaching CBAM to every model", "", *_INTRODUCTION]
    lines[-1] += (
        f" Written by `python benchmarks/zoo.py --report`; cbam {cbam.__version__}, torch {torch.__version__}."
    )
    for library in LIBRARIES:
        own = [row for row in rows if row["library"] == library]
        if not own:
            lines += ["", f"**{library}: not run yet.**"]
            continue
        conv = [row for row in own if row["convolutional"]]
        passed = sum(not row["reason"] for row in conv)
        lines += ["", f"## {library} {version_of(library)}", ""]
        lines += [f"{passed} of {len(conv)} convolutional models pass;"]
        lines += [
            f"{len(own) - len(conv)} others (fewer than three kernels that overlap, or transformers) were left out.",
            "",
        ]
        with suppress(ImportError):
            done = {row["model"] for row in own}
            if waiting := [name for _, name in models(library) if name not in done]:
                lines += [f"Not run: {', '.join(waiting)}.", ""]
        families = defaultdict(list)
        for row in conv:
            families[row["family"] or row["model"]].append(row)
        table = []
        for family, members in sorted(families.items()):
            sites, good = [row["sites"] for row in members], sum(not row["reason"] for row in members)
            span = str(min(sites)) if min(sites) == max(sites) else f"{min(sites)} to {max(sites)}"
            table.append([family, str(len(members)), str(good), f"{100 * good / len(members):.0f} %", span])
        lines += markdown(["family", "models", "pass", "share", "sites"], table)
        if failures := [[row["model"], row["reason"].replace("|", "/")] for row in conv if row["reason"]]:
            lines += ["", *markdown(["fails", "why"], failures)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
