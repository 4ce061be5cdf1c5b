"""A run that trains one network: the files that it writes, and when."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cbam.formatting import counted
from cbam.train.checkpoints import Checkpoints, step_of
from cbam.train.job import Data, TrainingJob
from cbam.train.loop import Callbacks, Trained
from cbam.train.state import whole_state
from cbam.train.stopping import Stop
from cbam.train.trackers import Metrics, Tracking

RESULT = "result.json"


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
    """One training; its outcome is the content of `result.json`."""

    unit: ClassVar[str] = "network"

    @property
    @abstractmethod
    def options(self) -> SingleConfig:
        """The run's options."""

    @property
    @abstractmethod
    def score_name(self) -> str:
        """The score by which the best epoch is chosen, by its name in the metrics and in the result."""

    @property
    def patience(self) -> int | None:
        """Epochs without a better score after which the training ends; None: it never ends early."""
        return None

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
        self.progress.start(self.unit, len(cells), len(done), work=epochs, each=each)

    def do(self, cell: Network) -> str:
        """Train the network; write its weights and its result."""
        config, main = self.options, self.processes.is_main_process
        metrics = Metrics(self.folder)
        model = self.build()
        checkpoints = Checkpoints(self.folder.path / "checkpoints", config.keep, self.describe_checkpoint)
        steps = self.steps_per_epoch(config.train)
        tracking = Tracking(config.trackers if main else (), self.folder.path, self.settings(), steps)
        try:
            with Stop().listening() as stop:
                if main and checkpoints.newest_good() is None:
                    metrics.go_on_after(0)
                callbacks = self._callbacks(metrics, tracking)
                trained = self.train(
                    config,
                    model,
                    config.seed,
                    checkpoints,
                    callbacks,
                    save_every=config.save_every,
                    patience=self.patience,
                    stop=stop,
                )
                weights = whole_state(trained.model)
                averaged = whole_state(trained.ema) if trained.ema is not None else None
        finally:
            tracking.finish()
        if main:
            self.folder.check_kept()
            self.write_network("final", weights)
            if averaged is not None:
                self.write_network("final_ema", averaged)
            self.folder.write_json(RESULT, self.result(trained))
        return ""

    def saved(self) -> str:
        """Name the newest checkpoint, or the finished network."""
        if self.is_done(self.cells[0]):
            return "the network is trained"
        newest = next(Checkpoints(self.folder.path / "checkpoints").newest_first(), None)
        if newest is None:
            return "no step is saved yet"
        return f"the state after {counted(step_of(newest), 'step')} is saved"

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

    def _callbacks(self, metrics: Metrics, tracking: Tracking) -> Callbacks:
        main = self.processes.is_main_process

        def on_epoch(row: dict[str, Any]) -> None:
            row = {**row, "images": self.validation_images()}
            if main:
                self.folder.check_kept()  # a row would make it again, without its settings and the rows before
                metrics.add(row)
            tracking.epoch(row)

        def on_resume(epochs: int, steps: int) -> None:
            if main:
                metrics.go_on_after(epochs)

        def on_best(model: nn.Module) -> None:
            weights = whole_state(model)
            if main:
                self.write_network("best", weights)

        return Callbacks(step=tracking.step, epoch=on_epoch, resume=on_resume, best=on_best)
