"""A whole run: measure what is not measured yet, keep every result at once, write the files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cbam.bench import modules, network, scaling
from cbam.bench.ahead import compile_ahead
from cbam.bench.allocator import keep_freed_memory
from cbam.bench.cells import Cell, Result, grid
from cbam.bench.folder import BenchFolder
from cbam.bench.progress import Progress
from cbam.bench.rivals import operator_missing
from cbam.bench.settings import BenchConfig
from cbam.models import build_model
from cbam.ops.dispatch import set_backend
from cbam.ops.library import library_file
from cbam.runs.environment import describe_environment, now

_MEASURE = {"modules": modules.measure, "network": network.measure, "scaling": scaling.measure}


@dataclass(frozen=True)
class Outcome:
    """What a run has found."""

    results: list[Result]
    environment: dict[str, Any]
    picture: Path | None


def execute(config: BenchConfig, command: Sequence[str], progress: Progress) -> Outcome:
    """Measure, or go on measuring, and write `bench.json`, `bench.csv` and the picture into the output folder.

    The process keeps freed memory from then on, see `keep_freed_memory`.

    Args:
        config: What to measure.
        command: What was typed.
        progress: Is told what happens.

    Raises:
        CBAMError: The settings or the folder do not fit; before any work.
        RivalsDiffer: Two modules that should compute the same do not.
    """
    config = config.resolved()
    threads = torch.get_num_threads()
    assert config.threads
    torch.set_num_threads(config.threads)
    try:
        with set_backend("auto"):
            return _execute(config, command, progress)
    finally:
        torch.set_num_threads(threads)


def _execute(config: BenchConfig, command: Sequence[str], progress: Progress) -> Outcome:
    if "network" in config.parts:
        with torch.device("meta"):
            build_model(config.model, 10)  # is there such a model?
    environment = describe_environment(list(command), "cpu")
    environment["machine"]["allocator"] = keep_freed_memory()
    identity = _identity(config, environment)
    folder = BenchFolder(config.output)
    folder.check(identity, config.restart)
    with folder.locked():
        environment = folder.start(identity, environment, config.restart)
        try:
            _measure(config, folder, progress)
        finally:
            results = _in_order(folder, config)
            if results:
                folder.write_outputs(results, identity, environment)
        from cbam.bench.figure import draw

        picture = draw(results, config.output)
    return Outcome(results, environment, picture)


def _identity(config: BenchConfig, environment: dict[str, Any]) -> dict[str, Any]:
    packages, names = environment["packages"], ("torch", "torchvision", "timm", "torch-cbam")
    return {
        **config.identity(),
        **{name: packages.get(name) for name in names},
        "commit": environment["git"],
        "cpu": environment["machine"]["cpu"],
        "operator": operator_missing() or hashlib.sha256(library_file().read_bytes()).hexdigest()[:12],
    }


def _measure(config: BenchConfig, folder: BenchFolder, progress: Progress) -> None:
    cells = grid(config)
    done = folder.results()
    missing = [cell for cell in cells if cell.name not in done]
    progress.start(len(cells), len(cells) - len(missing))
    _compile(config, missing, progress)
    for cell in missing:
        progress.begin(cell)
        start = time.monotonic()
        result = _MEASURE[cell.part](cell, config)
        folder.add(replace(result, finished=now()))
        progress.end(cell, time.monotonic() - start)
        for note in result.notes:
            progress.note(note)


def _compile(config: BenchConfig, missing: Sequence[Cell], progress: Progress) -> None:
    cells = [cell for cell in missing if cell.part == "modules"]
    if not (config.compile and cells):
        return
    start = time.monotonic()
    progress.compiling(len(cells))
    compile_ahead(cells, config.threads or 1, progress.compiled)
    progress.note(f"compiling took {time.monotonic() - start:.0f} s; it is not part of any time below")


def _in_order(folder: BenchFolder, config: BenchConfig) -> list[Result]:
    """Return all results of the folder, also of parts that this call was not asked for, in the order of the grid."""
    done = folder.results()
    names = [cell.name for cell in grid(replace(config, parts=tuple(_MEASURE)))]
    return [done[name] for name in names if name in done]
