"""What a run of `cbam bench` says about the speed and memory that this library promises.

Usage: python benchmarks/targets.py [FOLDER]        FOLDER is what `cbam bench --output` was given
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cbam.bench.cells import BOTH, FORWARD, INFERENCE, PLAIN, TRAINING, Result
from cbam.bench.scaling import ONE_THREAD
from cbam.bench.summary import (
    best_compiled_over_ours,
    load,
    mean_of,
    ours,
    select,
    textbook_over_ours,
)
from cbam.bench.target import Target
from cbam.errors import CBAMError

LARGEST = (8, 256, 56, 56)
SHAPES = {LARGEST, (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)}


def targets(results: Sequence[Result]) -> Iterator[Target]:
    """Yield every promise with what the results say about it; where layouts are not averaged, the worse one counts."""
    for mode, textbook, compiled in ((FORWARD, (10, 15), (2, 3)), (BOTH, (8, 12), (3, 5))):
        cells = select(results, "modules", mode)
        yield Target(f"{mode}: textbook / ours", *textbook, True, mean_of(cells, textbook_over_ours))
        yield Target(
            f"{mode}: best compiled / ours", *compiled, True, mean_of(cells, best_compiled_over_ours)
        )
    largest = [r for r in select(results, "modules", FORWARD) if r.cell.shape == LARGEST]
    for layout, cells in _by_layout(largest):
        yield Target(
            f"forward at 8x256x56², {layout} / copy", 2.0, 1.5, False, mean_of(cells, _over_reference)
        )
    for mode, must, aim in ((INFERENCE, 1.08, 1.03), (TRAINING, 1.15, 1.05)):
        for layout, cells in _by_layout(select(results, "network", mode)):
            figure = f"{mode} / plain, {layout}"
            yield Target(figure, must, aim, False, mean_of(cells, _over_reference))
    for layout, cells in _by_layout(select(results, "network", TRAINING)):
        yield Target(f"bytes saved / plain, {layout}", 1.02, 1.01, False, mean_of(cells, _saved))
    for mode in (FORWARD, BOTH):
        for layout, cells in _by_layout(select(results, "scaling", mode, study="threads")):
            figure = f"1 thread / 2, {mode}, {layout}"
            yield Target(figure, 1.6, 1.8, True, mean_of(cells, _faster_by_threads))


def deviations(results: Sequence[Result]) -> Iterator[str]:
    """Yield in what a run differs from the settings that the promises are made for."""
    for name, expected in (("threads", {2}), ("dtype", {"float32"})):
        given = {getattr(result.cell, name) for result in results}
        if given != expected:
            yield f"{name} {', '.join(map(str, sorted(given)))} instead of {expected.pop()}"
    shapes = {result.cell.shape for result in select(results, "modules")}
    if shapes and shapes != SHAPES:
        yield f"module shapes {sorted(shapes)} instead of {sorted(SHAPES)}"
    images = {result.cell.shape for result in select(results, "network")}
    if images and images != {(8, 3, 224, 224)}:
        yield f"images {sorted(images)} instead of (8, 3, 224, 224)"


def _by_layout(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    layouts = list(dict.fromkeys(result.cell.memory_format for result in results))
    for layout in layouts or ["any layout"]:
        yield layout, [result for result in results if result.cell.memory_format == layout]


def _over_reference(result: Result) -> float:
    return result.ratio(ours(result))


def _saved(result: Result) -> float:
    return result.saved_bytes[ours(result)] / result.saved_bytes[PLAIN]


def _faster_by_threads(result: Result) -> float:
    return result.ratio(ours(result) + ONE_THREAD, ours(result))


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if something that must be kept is missed or was not measured."""
    console = Console(highlight=False)
    try:
        results = load(Path(arguments[0] if arguments else "runs/bench"))
    except CBAMError as error:
        console.print(f"targets.py: {error}", soft_wrap=True)
        return 2
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("figure", "must", "aim", "measured", ""):
        table.add_column(heading, justify="right" if heading in ("must", "aim", "measured") else "left")
    found = list(targets(results))
    for target in found:
        sign = ">=" if target.faster else "<="
        measured = "" if target.measured is None else f"{target.measured:.3f}"
        table.add_row(
            target.figure, f"{sign} {target.must:g}", f"{sign} {target.aim:g}", measured, target.verdict
        )
    cells = results[0].cell
    console.print(
        f"{cells.dtype}, {cells.threads} threads; modules: geometric mean over shapes and memory formats"
    )
    console.print(table)
    return int(any(not target.verdict.endswith("met") for target in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
