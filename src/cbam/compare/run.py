"""Run a comparison from its configuration to its report, or go on with one that was stopped.

Every step looks first whether its file is there: a cell's `result.json`, `costs.json`, `pictures.json`. So a run that
was killed anywhere is finished by the same command, and a finished one only writes its report again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.compare.config import CompareConfig, merged, resolved
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, build_cell, cells, count_parameters
from cbam.compare.measure import (
    draw_pictures,
    measure_costs,
    pictures_done,
    trained_models,
    training_speed,
)
from cbam.compare.progress import PlainProgress
from cbam.compare.report import write_report
from cbam.compare.spread import absorb_metrics, check_spread, train_elsewhere
from cbam.compare.statistics import Summary, summarise, write_summary_csv
from cbam.compare.training import Job, train_one
from cbam.errors import CBAMError
from cbam.models.registry import split_attention
from cbam.runs.environment import describe_environment, with_session
from cbam.train.device import make_accelerator


@dataclass(frozen=True)
class Outcome:
    """What a finished comparison leaves."""

    data: str
    summary: Summary
    costs: dict[str, Any]
    report: Path


def prepare(config: CompareConfig, command: list[str], progress: PlainProgress) -> Job:
    """Check everything that can be checked before training: folder, device, images, and a model of each variant.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Is told what the images are.

    Raises:
        CBAMError: Something that was asked for does not exist or does not fit; the message says what to type.
    """
    check_spread(config)
    backbone, brought = split_attention(config.model)
    if brought:
        raise CBAMError(
            f"--model {config.model} brings its attention, so nothing in the comparison would be without it. "
            f"Type --model {backbone} --attention none,{brought}"
        )
    folder = CompareFolder(config.folder)
    before = folder.check_config(resolved(config))
    if (seeds := before.get("seeds", 0)) > config.seeds:
        progress.notice(f"{folder.path} holds a run of {seeds} seeds; it goes on with all of them")
        config = dataclasses.replace(config, seeds=seeds)
    variants = merged(before.get("attention", ""), config.variants)
    if set(variants) > set(config.variants):
        progress.notice(f"{folder.path} holds a run of {', '.join(variants)}; it goes on with all of them")
    config = dataclasses.replace(config, attention=",".join(variants))
    settings = resolved(config)
    accelerator = make_accelerator(config.train)
    data = config.load()
    folder.check_data(data)
    progress.line(f"images: {data.source}")
    for notice in data.notices:
        progress.notice(notice)
    progress.line(
        f"{len(data.train):,} images to train on, {len(data.val):,} to validate, {len(data.classes)} classes, "
        f"{'x'.join(map(str, data.input_size))} each"
    )
    parameters = {}
    for variant in config.variants:
        parameters[variant] = count_parameters(build_cell(Cell(variant, 0), config, data))
    counts = ", ".join(f"{variant} {count:,}" for variant, count in parameters.items())
    progress.line(f"{config.model}, parameters: {counts}")
    return Job(config, command, settings, folder, data, parameters, accelerator)


def execute(job: Job, progress: PlainProgress) -> Outcome | None:
    """Train the cells that have no result, measure, draw, and write the report.

    Args:
        job: Of `prepare`.
        progress: Is told how far the run is.

    Returns:
        The outcome; None on the processes that only help to train.

    Raises:
        FolderInUse: Another process works in the folder.
        NonFiniteLoss: A training broke down.
    """
    if not job.accelerator.is_main_process:
        job.accelerator.wait_for_everyone()
        _train_all(job, progress)
        return None
    with job.folder.locked():
        job.folder.check_config(job.settings)  # again: another process may have written it since `prepare`
        _open_folder(job)
        job.accelerator.wait_for_everyone()
        trained = _train_all(job, progress)
        costs = _measure(job, progress, anew=any(cell.seed == 0 for cell in trained))
        results = [result for cell in _grid(job) if (result := job.folder.result(cell))]
        summary = summarise(results, job.config.variants)
        write_summary_csv(job.folder.path, summary)
        return Outcome(job.data.name, summary, costs, write_report(job.folder.path))


def _grid(job: Job) -> list[Cell]:
    return cells(job.config.variants, job.config.seeds)


def _open_folder(job: Job) -> None:
    folder, data = job.folder, job.data
    environment = describe_environment(
        job.command, job.accelerator.device.type, job.accelerator.num_processes
    )
    folder.write_config(job.settings)
    folder.write_json("env.json", with_session(folder.read_json("env.json"), environment))
    folder.write_json(
        "data.json",
        {
            **data.identity,
            "source": data.source,
            "mean": list(data.mean),
            "std": list(data.std),
            "notices": list(data.notices),
        },
    )
    folder.mend_metrics()
    absorb_metrics(folder, _grid(job))


def _train_all(job: Job, progress: PlainProgress) -> list[Cell]:
    """Train what has no result yet; return those cells."""
    grid = _grid(job)
    done = [cell for cell in grid if job.folder.result(cell)]
    job.accelerator.wait_for_everyone()  # all processes have looked before the first result is written
    progress.start(grid, done, job.config.train.epochs)
    if job.config.elsewhere:
        train_elsewhere(job, [cell for cell in grid if cell not in done], progress)
        return [cell for cell in grid if cell not in done]
    for number, cell in enumerate(grid, start=1):
        if cell not in done:
            progress.start_cell(cell, number)
            train_one(job, cell, progress)
    return [cell for cell in grid if cell not in done]


def _measure(job: Job, progress: PlainProgress, *, anew: bool) -> dict[str, Any]:
    """Write `costs.json` and the pictures where they are missing, or all where `anew`."""
    variants = job.config.variants
    known = job.folder.read_json("costs.json") or {}
    costs = {} if anew or set(known) != set(variants) else known
    drawn = pictures_done(job.folder, variants) and not anew
    if not (costs and drawn):
        models = trained_models(job.folder, job.config, job.data, job.accelerator.device)
        if not costs:
            progress.phase("measuring cost and latency")
            costs = measure_costs(models, job.data.input_size)
        if not drawn:
            progress.phase("drawing what the models look at (Grad-CAM)")
            try:
                draw_pictures(job.folder, models, job.data)
            except CBAMError as error:  # a network without a feature map still has its numbers
                progress.notice(f"no pictures: {error}")
    rows = job.folder.rows()
    costs = {
        variant: {**costs[variant], "training_images_per_s": training_speed(rows, variant)}
        for variant in variants
    }
    job.folder.write_json("costs.json", costs)
    return costs
