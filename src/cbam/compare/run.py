"""Run a comparison from its configuration to its report, or go on with one that was stopped.

Every step looks first whether its file is there: a cell's `result.json`, `costs.json`, `pictures.json`. So a run that
was killed anywhere is finished by the same command, and a finished one only writes its report again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save as to_safetensors
from torch import nn

from cbam.compare.config import CompareConfig, merged, numbers, resolved
from cbam.compare.folder import RunFolder
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
from cbam.compare.statistics import Summary, summarise, write_summary_csv
from cbam.data import ImageData, load_data
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.environment import describe_environment, now, with_session
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.loop import Trained, Watchers, train_model
from cbam.train.nonfinite import NonFiniteLoss


@dataclass(frozen=True)
class Job:
    """A comparison whose every input was looked at: what can be refused has been, and nothing was written yet."""

    config: CompareConfig
    command: list[str]
    settings: dict[str, Any]
    folder: RunFolder
    data: ImageData
    parameters: dict[str, int]
    accelerator: Accelerator


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
    folder = RunFolder(config.folder)
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
    data = load_data(
        config.data,
        image_size=config.image_size,
        mean=numbers("mean", config.mean),
        std=numbers("std", config.std),
        limit_train=config.limit_train,
        limit_val=config.limit_val,
        val_fraction=config.val_fraction,
        bad_images=config.bad_images,
    )
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


def _train_all(job: Job, progress: PlainProgress) -> list[Cell]:
    """Train what has no result yet; return those cells."""
    grid = _grid(job)
    done = [cell for cell in grid if job.folder.result(cell)]
    job.accelerator.wait_for_everyone()  # all processes have looked before the first result is written
    progress.start(grid, done, job.config.train.epochs)
    for number, cell in enumerate(grid, start=1):
        if cell not in done:
            progress.start_cell(cell, number)
            _train(job, cell, progress)
    return [cell for cell in grid if cell not in done]


def _train(job: Job, cell: Cell, progress: PlainProgress) -> None:
    path = job.folder.cell(cell)
    main = job.accelerator.is_main_process

    def on_epoch(row: dict[str, Any]) -> None:
        row = {"cell": cell.name, "variant": cell.variant, "seed": cell.seed, **row}
        if main:
            job.folder.append_metrics(row)
        progress.epoch(row)

    model = build_cell(cell, job.config, job.data)
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        trained = train_model(
            model,
            job.data,
            job.config.train,
            seed=cell.seed,
            checkpoints=checkpoints,
            fine_tuning=job.config.fine_tuning,
            accelerator=job.accelerator,
            watchers=Watchers(
                step=progress.step, epoch=on_epoch, resume=lambda epochs, steps: progress.resume_cell(epochs)
            ),
        )
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"cell {cell.name}: {error}") from None
    result = _result(cell, trained, job.config.train.epochs)
    if main:
        _write_weights(path / "model.safetensors", trained.model, job, cell)
        if trained.ema is not None:
            _write_weights(path / "model_ema.safetensors", trained.ema, job, cell)
        job.folder.write_json(f"cells/{cell.name}/result.json", result)
        checkpoints.clear()
    progress.end_cell(result)


def _result(cell: Cell, trained: Trained, epochs: int) -> dict[str, Any]:
    scores = trained.evaluation
    ema = {"val_accuracy_ema": trained.ema_evaluation.accuracy} if trained.ema_evaluation else {}
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "epochs": epochs,
        "val_accuracy": scores.accuracy,
        **ema,
        "val_loss": scores.loss,
        "per_class_accuracy": scores.per_class_accuracy,
        "confusion": scores.confusion.tolist(),
        "parameters": count_parameters(trained.model),
        "seconds": trained.seconds,
        "finished": now(),
    }


def _write_weights(file: Path, model: nn.Module, job: Job, cell: Cell) -> None:
    # safetensors takes no channels_last strides and no two names for one tensor, hence contiguous copies.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    about = {
        "model": job.config.model,
        "attention": cell.variant,
        "seed": str(cell.seed),
        "classes": json.dumps(job.data.classes),
        "input_size": json.dumps(job.data.input_size),
        "mean": json.dumps(job.data.mean),
        "std": json.dumps(job.data.std),
    }
    write_atomically(file, to_safetensors(weights, about))


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
