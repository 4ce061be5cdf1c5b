"""A comparison: a grid of networks to train, here or on a cluster, and what follows the last.

Every step first checks whether its file exists, such as a cell's `result.json`. So a run that was killed anywhere is
finished by the same command, and a finished one only writes its report again.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from cbam.compare.config import GridConfig, merged
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, cells
from cbam.compare.speed import training_speed
from cbam.compare.statistics import Summary
from cbam.formatting import counted, duration
from cbam.runs.imports import import_modules
from cbam.runs.launchers import Cluster, Task, launch
from cbam.runs.progress import Progress
from cbam.runs.rows import Rows
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.job import Data, TrainingJob
from cbam.train.loop import Callbacks, Trained
from cbam.train.nonfinite import NonFiniteLoss
from cbam.train.stopping import CTRL_C, Interrupted, Stop
from cbam.train.trackers import Tracking

ROWS = "metrics.jsonl"
Config = TypeVar("Config", bound=GridConfig)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a finished comparison."""

    data: str
    summary: Summary
    costs: dict[str, Any]
    report: Path
    score: str = "accuracy"


@dataclass(kw_only=True)
class ComparisonJob(TrainingJob[Cell, Outcome, Data]):
    """A comparison: its cells are models to train.

    Attributes:
        parameters: Their number by variant, counted as the models are built.
    """

    unit: ClassVar[str] = "model"

    config: Any
    folder: CompareFolder
    parameters: dict[str, int]

    @classmethod
    @abstractmethod
    def score_name(cls, data: Any) -> str:
        """Return the score of a finished cell that is compared, by its name in `result.json`."""

    @abstractmethod
    def build(self, cell: Cell) -> nn.Module:
        """Return the model of a cell as it is before training; its parameters are counted."""

    @abstractmethod
    def write_weights(self, cell: Cell, model: nn.Module, averaged: nn.Module | None) -> None:
        """Write the weights of a trained model, and of its moving average, into the cell's folder."""

    def describe_checkpoint(
        self, cell: Cell, model: nn.Module, files: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Return further files of a checkpoint: what is needed to open the network in it."""
        return {}

    @abstractmethod
    def result(self, cell: Cell, trained: Trained[Any]) -> dict[str, Any]:
        """Return the scores that `result.json` holds beside variant, seed, parameters and time."""

    @abstractmethod
    def result_text(self, result: dict[str, Any]) -> str:
        """Format the main score in a result."""

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
        epochs = self.epochs(self.config.train)
        each = f"to train for {counted(epochs, 'epoch')} each"
        self.progress.start(self.unit, len(cells), len(done), work=epochs, each=each)

    def work(self, pending: Sequence[Cell]) -> None:
        """Train the models here or on a cluster."""
        if not (pending and self.config.elsewhere):
            return super().work(pending)
        config = self.config.anywhere()
        cluster = Cluster(
            config.ray, config.slurm, config.model_cpus, config.model_gpus, config.folder / "slurm"
        )
        launch(
            [TrainCell(type(self), config, cell, self.parameters) for cell in pending],
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
                self.folder.check_kept()  # a row would make it again, without its settings
                self.folder.metrics.append({**about, **row})
            tracking.epoch(row)

        model = self.build(cell)
        describe = partial(self.describe_checkpoint, cell, model)
        checkpoints = Checkpoints(path / "checkpoints", describe=describe)
        steps = self.steps_per_epoch(self.config.train)
        about = {"cell": cell.name, "variant": cell.variant, "seed": cell.seed}
        names = self.config.trackers if main else ()
        tracking = Tracking(names, path, {**self.settings(), **about}, steps, self.config.folder)
        callbacks = Callbacks(step=tracking.step, epoch=on_epoch)
        try:
            with Stop().listening(CTRL_C) as stop:
                trained = self.train(self.config, model, cell.seed, checkpoints, callbacks, stop=stop)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"cell {cell.name}: {error}") from None
        except Interrupted as stop:
            raise Interrupted(f"{cell.name}: {stop}") from None
        finally:
            tracking.finish()
        result = {
            "variant": cell.variant,
            "seed": cell.seed,
            "epochs": self.epochs(self.config.train),
            **self.result(cell, trained),
        }
        if main:
            self.write_weights(cell, trained.model, trained.ema)
            self.folder.write_json(f"cells/{cell.name}/result.json", result)
            checkpoints.clear()
        took = duration(result["seconds"])
        return f"{self.result_text(result)}  {result['parameters']:,} parameters  {took}"

    def with_speed(self, costs: dict[str, Any]) -> dict[str, Any]:
        """Return the costs by variant with the speed of training added, and write them."""
        rows = self.folder.metrics.read()
        costs = {
            variant: {**costs[variant], "training_images_per_s": speed.images_per_s}
            for variant in self.config.variants
            for speed in [training_speed(rows, variant, variant)]
        }
        self.folder.write_json("costs.json", costs)
        return costs

    def _trained(self, task: Task) -> str:
        """Add the metrics of a task on the cluster; return the score of its model."""
        cell = next(cell for cell in self.cells if cell.name == task.name)
        absorb_metrics(self.folder, [cell])
        result = self.folder.result(cell)
        return self.result_text(result) if result else "but left no result"


@dataclass(frozen=True)
class TrainCell:
    """One cell of a comparison, trained by the process that calls it.

    Attributes:
        job: The kind of comparison.
        config: Of the comparison, with paths that are valid on every machine.
        cell: Which one.
        parameters: Of the variants, see `ComparisonJob`.
    """

    job: type[ComparisonJob[Any]]
    config: Any
    cell: Cell
    parameters: dict[str, int]

    @property
    def name(self) -> str:
        """The cell's name."""
        return self.cell.name

    def __call__(self) -> None:
        """Train the model unless it is done."""
        import_modules(self.config.imports)  # unpickling does not run the checks that import them
        data = self.config.load()
        folder = CompareFolder(self.config.folder, self.job.score_name(data))
        folder.metrics = _own_rows(folder, self.cell)
        if folder.result(self.cell) is not None:
            return
        folder.metrics.mend()
        job = self.job(
            config=self.config,
            command=[],
            folder=folder,
            progress=Progress(),
            processes=make_accelerator(self.config.train),
            data=data,
            parameters=dict(self.parameters),
        )
        job.announce([self.cell], [])
        job.do(self.cell)


def grown(config: Config, before: dict[str, Any], progress: Progress) -> Config:
    """Return the options with the seeds and variants that the folder has beyond those asked for.

    Args:
        config: The options.
        before: The settings in the folder.
        progress: Gets a note of them.
    """
    there = f"{config.folder} holds a run of"
    if (seeds := before.get("seeds", 0)) > config.seeds:
        progress.note(f"{there} {seeds} seeds; it resumes with all of them")
        config = dataclasses.replace(config, seeds=seeds)
    variants = merged(before.get("attention", ""), config.variants)
    if set(variants) > set(config.variants):
        progress.note(f"{there} {', '.join(variants)}; it resumes with all of them")
    return dataclasses.replace(config, attention=",".join(variants))


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
