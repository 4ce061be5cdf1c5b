"""Run a comparison from its options to its report, or resume one that was stopped.

Every step first checks whether its file exists: a cell's `result.json`, `costs.json`, `pictures.json`. So a run that
was killed anywhere is finished by the same command, and a finished one only writes its report again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cbam.checkpoints import tensors_file
from cbam.compare.config import CompareConfig, merged
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, build_cell, cells, count_parameters
from cbam.compare.measure import (
    draw_pictures,
    measure_costs,
    pictures_done,
    trained_models,
    training_speed,
)
from cbam.compare.report import write_report
from cbam.compare.statistics import Summary, summarise, write_summary_csv
from cbam.errors import CBAMError
from cbam.formatting import counted, duration
from cbam.models.registry import split_attention
from cbam.runs.environment import now
from cbam.runs.imports import import_modules
from cbam.runs.launchers import Cluster, Task, check_launcher, launch
from cbam.runs.options import absolute_data
from cbam.runs.progress import Progress
from cbam.runs.rows import Rows
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation
from cbam.train.job import ImageJob, prepare_images
from cbam.train.loop import Callbacks, Trained
from cbam.train.nonfinite import NonFiniteLoss

ROWS = "metrics.jsonl"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a finished comparison."""

    data: str
    summary: Summary
    costs: dict[str, Any]
    report: Path


@dataclass(kw_only=True)
class CompareJob(ImageJob[Cell, Outcome]):
    """A comparison: its cells are models to train.

    Attributes:
        parameters: Their number by variant, counted as the models are built.
    """

    config: CompareConfig
    folder: CompareFolder
    parameters: dict[str, int]

    @property
    def cells(self) -> list[Cell]:
        """All variants of all seeds."""
        return cells(self.config.variants, self.config.seeds)

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's result and weights are there."""
        return self.folder.result(cell) is not None

    def open(self) -> None:
        """Write settings and data, and add the metrics of models that were trained on a cluster."""
        super().open()
        absorb_metrics(self.folder, self.cells)

    def announce(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        """Show how many models there are to train."""
        epochs = self.config.train.epochs
        each = f"to train for {counted(epochs, 'epoch')} each"
        self.progress.start("model", len(cells), len(done), work=epochs, each=each)

    def work(self, pending: Sequence[Cell]) -> None:
        """Train the models here or on a cluster."""
        if not (pending and self.config.elsewhere):
            return super().work(pending)
        config = anywhere(self.config)
        cluster = Cluster(
            config.ray, config.slurm, config.model_cpus, config.model_gpus, config.folder / "slurm"
        )
        launch(
            [TrainCell(config, cell, self.parameters) for cell in pending],
            cluster,
            self.progress,
            self._trained,
        )
        return None

    def do(self, cell: Cell) -> str:
        """Train the model of a cell, or resume it; its weights and its result go into the run's folder."""
        path, main = self.folder.cell(cell), self.processes.is_main_process

        def on_epoch(row: dict[str, Any]) -> None:
            if main:
                about = {"cell": cell.name, "variant": cell.variant, "seed": cell.seed}
                self.folder.metrics.append({**about, **row})

        model = build_cell(cell, self.config, self.data, self.parameters)
        checkpoints = Checkpoints(path / "checkpoints")
        try:
            trained = self.train(self.config, model, cell.seed, checkpoints, Callbacks(epoch=on_epoch))
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"cell {cell.name}: {error}") from None
        result = _result(cell, trained, self.config.train.epochs)
        if main:
            self._write_weights(path / "model.safetensors", trained.model, cell)
            if trained.ema is not None:
                self._write_weights(path / "model_ema.safetensors", trained.ema, cell)
            self.folder.write_json(f"cells/{cell.name}/result.json", result)
            checkpoints.clear()
        accuracy, took = f"val {100 * result['val_accuracy']:.2f} %", duration(result["seconds"])
        return f"{accuracy}  {result['parameters']:,} parameters  {took}"

    def finish(self, worked: Sequence[Cell]) -> Outcome:
        """Measure, draw, and write the report."""
        costs = self._measure(again=any(cell.seed == 0 for cell in worked))
        results = [result for cell in self.cells if (result := self.folder.result(cell))]
        summary = summarise(results, self.config.variants)
        write_summary_csv(self.folder.path, summary)
        return Outcome(self.data.name, summary, costs, write_report(self.folder.path))

    def _trained(self, task: Task) -> str:
        """Add the metrics of a task on the cluster; return the accuracy of its model."""
        cell = next(cell for cell in self.cells if cell.name == task.name)
        absorb_metrics(self.folder, [cell])
        result = self.folder.result(cell) or {}
        return f"validation accuracy {result['val_accuracy']:.2%}" if result else "but left no result"

    def _measure(self, *, again: bool) -> dict[str, Any]:
        """Write `costs.json` and the pictures where they are missing, or all of them if `again`."""
        variants, folder = self.config.variants, self.folder
        known = folder.read_json("costs.json") or {}
        costs = {} if again or set(known) != set(variants) else known
        drawn = pictures_done(folder, variants) and not again
        if not (costs and drawn):
            device = self.processes.device
            models = trained_models(folder, self.config, self.data, self.parameters, device)
            if not costs:
                self.progress.phase("measuring cost and latency")
                costs = measure_costs(models, self.data.input_size)
            if not drawn:
                self.progress.phase("drawing what the models look at (Grad-CAM)")
                try:
                    draw_pictures(folder, models, self.data)
                except CBAMError as error:  # a network without a feature map still has its numbers
                    self.progress.note(f"no pictures: {error}")
        rows = folder.metrics.read()
        costs = {
            variant: {**costs[variant], "training_images_per_s": training_speed(rows, variant)}
            for variant in variants
        }
        folder.write_json("costs.json", costs)
        return costs

    def _write_weights(self, file: Path, model: nn.Module, cell: Cell) -> None:
        about = {
            "model": self.config.model,
            "attention": cell.variant,
            "seed": str(cell.seed),
            "classes": json.dumps(self.data.classes),
            "input_size": json.dumps(self.data.input_size),
            "mean": json.dumps(self.data.mean),
            "std": json.dumps(self.data.std),
        }
        tensors_file.write(file, model.state_dict(), about)


@dataclass(frozen=True)
class TrainCell:
    """One cell of a comparison, trained by the process that calls it.

    Attributes:
        config: Of the comparison, with paths that are valid on every machine.
        cell: Which one.
        parameters: Of the variants, see `CompareJob`.
    """

    config: CompareConfig
    cell: Cell
    parameters: dict[str, int]

    @property
    def name(self) -> str:
        """The cell's name."""
        return self.cell.name

    def __call__(self) -> None:
        """Train the model unless it is done."""
        import_modules(self.config.imports)  # unpickling does not run the checks that import them
        folder = CompareFolder(self.config.folder)
        folder.metrics = _own_rows(folder, self.cell)
        if folder.result(self.cell) is not None:
            return
        folder.metrics.mend()
        job = CompareJob(
            config=self.config,
            command=[],
            folder=folder,
            progress=Progress(),
            processes=make_accelerator(self.config.train),
            data=self.config.load(),
            parameters=dict(self.parameters),
        )
        job.announce([self.cell], [])
        job.do(self.cell)


def prepare(config: CompareConfig, command: list[str], progress: Progress) -> CompareJob:
    """Check everything that can be checked before training: folder, device, images, and a model of each variant.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the models.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_launcher(config.ray, config.slurm)
    backbone, brought = split_attention(config.model)
    if brought:
        raise CBAMError(
            f"--model {config.model} already has attention, so every variant would have it. "
            f"Type --model {backbone} --attention none,{brought}"
        )
    folder = CompareFolder(config.folder)
    before = folder.check_settings(config.resolved(), CompareConfig)
    config = _grown(config, before, progress)
    accelerator, data = prepare_images(config, config.train, folder, progress)
    parameters: dict[str, int] = {}
    for variant in config.variants:
        if variant not in parameters:
            build_cell(Cell(variant, 0), config, data, parameters)
    counts = ", ".join(f"{variant} {parameters[variant]:,}" for variant in config.variants)
    progress.line(f"{config.model}, parameters: {counts}")
    return CompareJob(
        config=config,
        command=command,
        folder=folder,
        progress=progress,
        processes=accelerator,
        data=data,
        parameters=parameters,
    )


def _grown(config: CompareConfig, before: dict[str, Any], progress: Progress) -> CompareConfig:
    """Return the options with the seeds and variants that the folder has beyond those asked for."""
    there = f"{config.folder} holds a run of"
    if (seeds := before.get("seeds", 0)) > config.seeds:
        progress.note(f"{there} {seeds} seeds; it resumes with all of them")
        config = dataclasses.replace(config, seeds=seeds)
    variants = merged(before.get("attention", ""), config.variants)
    if set(variants) > set(config.variants):
        progress.note(f"{there} {', '.join(variants)}; it resumes with all of them")
    return dataclasses.replace(config, attention=",".join(variants))


def anywhere(config: CompareConfig) -> CompareConfig:
    """Return the options with absolute paths, for processes that start in another folder.

    >>> anywhere(CompareConfig(data="digits")).folder.is_absolute()
    True
    """
    return dataclasses.replace(
        config,
        output=config.folder.resolve(),
        data=absolute_data(config.data),
        weights=config.weights.resolve() if config.weights else None,
    )


def absorb_metrics(folder: CompareFolder, cells: Sequence[Cell]) -> None:
    """Move the rows of finished cells from the files of their own into the run's.

    Args:
        folder: The run's.
        cells: Those without a file of their own are skipped.
    """
    for cell in cells:
        own = _own_rows(folder, cell)
        if own.path.exists() and folder.result(cell) is not None:
            known = [row for row in folder.metrics.read() if row["cell"] != cell.name]
            folder.metrics.replace([*known, *own.read()])
            own.path.unlink()


def _own_rows(folder: CompareFolder, cell: Cell) -> Rows:
    """Return the cell's own file of rows: many machines cannot append to one file."""
    return Rows(folder.cell(cell) / ROWS)


def _result(cell: Cell, trained: Trained[Evaluation], epochs: int) -> dict[str, Any]:
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
