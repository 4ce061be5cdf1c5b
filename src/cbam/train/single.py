"""A run that trains one network: the files that it writes, and when."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from cbam.formatting import counted
from cbam.train.checkpoints import Checkpoints
from cbam.train.job import Data, TrainingJob
from cbam.train.loop import Callbacks, Trained
from cbam.train.state import whole_state
from cbam.train.stopping import Stop
from cbam.train.trackers import Metrics, open_trackers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

RESULT = "result.json"
_STEPS_BETWEEN_LOGS = 50


@dataclass(frozen=True)
class Network:
    """The only cell of a training."""

    name: str


class SingleConfig(Protocol):
    """The options of a run that trains one network."""

    @property
    def seed(self) -> int:
        """Of the training."""

    @property
    def folder(self) -> Path:
        """The run's."""

    @property
    def save_every(self) -> int | None:
        """Steps between two checkpoints."""

    @property
    def keep(self) -> int:
        """Checkpoints to keep."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers' names."""

    @property
    def train(self) -> Any:
        """The recipe."""

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""


@dataclass(kw_only=True)
class SingleJob(TrainingJob[Network, "dict[str, Any]", Data]):
    """One training; its outcome is the content of `result.json`.

    Attributes:
        trackers: Opened with the first step.
    """

    trackers: list[GeneralTracker] = field(default_factory=list)

    @property
    @abstractmethod
    def options(self) -> SingleConfig:
        """The run's options."""

    @property
    @abstractmethod
    def score_name(self) -> str:
        """The score by which the best epoch is chosen, by its name in the metrics and in the result."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network as it is before training."""

    @abstractmethod
    def validation_images(self) -> int:
        """Return the number of images that validate."""

    @abstractmethod
    def write_network(self, name: str, weights: dict[str, Tensor]) -> None:
        """Write weights into a folder of the run."""

    def describe_checkpoint(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return further files of a checkpoint: what is needed to open the network in it."""
        return {}

    @abstractmethod
    def result(self, trained: Trained[Any]) -> dict[str, Any]:
        """Return what `result.json` holds; called on the main process."""

    @property
    def cells(self) -> list[Network]:
        """The network."""
        return [Network(self.options.folder.name)]

    def is_done(self, cell: Network) -> bool:
        """Whether there is a result."""
        return self.folder.read_json(RESULT, self.score_name) is not None

    def open(self) -> None:
        """Write settings and data, unless the run is finished."""
        if not self.is_done(self.cells[0]):
            super().open()

    def announce(self, cells: Sequence[Network], done: Sequence[Network]) -> None:
        """Show how many epochs there are to train."""
        epochs = self.epochs(self.options.train)
        each = f"to train for {counted(epochs, 'epoch')}"
        self.progress.start("network", len(cells), len(done), work=epochs, each=each)

    def do(self, cell: Network) -> str:
        """Train the network; write its weights and its result."""
        config, main = self.options, self.processes.is_main_process
        metrics = Metrics(self.folder)
        model = self.build()
        checkpoints = Checkpoints(self.folder.path / "checkpoints", config.keep, self.describe_checkpoint)
        try:
            with Stop().listening() as stop:
                if main and checkpoints.newest_good() is None:
                    metrics.go_on_after(0)
                callbacks = self._callbacks(metrics)
                trained = self.train(
                    config,
                    model,
                    config.seed,
                    checkpoints,
                    callbacks,
                    save_every=config.save_every,
                    stop=stop,
                )
                weights = whole_state(trained.model)
                averaged = whole_state(trained.ema) if trained.ema is not None else None
        finally:
            for tracker in self.trackers:
                tracker.finish()
        if main:
            self.folder.check_kept()
            self.write_network("final", weights)
            if averaged is not None:
                self.write_network("final_ema", averaged)
            self.folder.write_json(RESULT, self.result(trained))
        return ""

    def finish(self, worked: Sequence[Network]) -> dict[str, Any]:
        """Return the result."""
        return self.folder.read_json(RESULT, self.score_name) or {}

    @cached_property
    def skeleton(self) -> nn.Module:
        """A second network of the same form, on the CPU, through which weights are saved."""
        return self.build()

    def best_row(self) -> dict[str, Any]:
        """Return the metrics of the best epoch."""
        judged = [row for row in self.folder.metrics.read() if self.score_name in row]
        return max(judged, key=lambda row: row[self.score_name])

    def _callbacks(self, metrics: Metrics) -> Callbacks:
        main, steps_each = self.processes.is_main_process, self.steps_per_epoch(self.options.train)

        def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
            done = epoch * steps + step
            if main and not self.trackers:
                self.trackers += open_trackers(self.options.trackers, self.folder, self.settings(), done)
            if done % _STEPS_BETWEEN_LOGS == 0:
                for tracker in self.trackers:
                    tracker.log({"step/loss": loss}, done)

        def on_epoch(row: dict[str, Any]) -> None:
            row = {**row, "images": self.validation_images()}
            if main:
                self.folder.check_kept()  # a row would make it again, without its settings and the rows before
                metrics.add(row)
            for tracker in self.trackers:
                numbers = {f"epoch/{name}": float(value) for name, value in row.items() if name != "epoch"}
                tracker.log(numbers, row["epoch"] * steps_each)

        def on_resume(epochs: int, steps: int) -> None:
            if main:
                metrics.go_on_after(epochs)

        def on_best(model: nn.Module) -> None:
            weights = whole_state(model)
            if main:
                self.write_network("best", weights)

        return Callbacks(step=on_step, epoch=on_epoch, resume=on_resume, best=on_best)
