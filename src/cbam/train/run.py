"""`cbam train`: run one training, or resume it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cbam.attach import attach
from cbam.attach.sites.select import split_sites
from cbam.data import ImageData
from cbam.errors import CBAMError
from cbam.formatting import counted
from cbam.models import build_model
from cbam.models.registry import split_attention
from cbam.pretrained import save_pretrained
from cbam.runs.environment import now
from cbam.runs.folder import RunFolder
from cbam.runs.progress import Progress
from cbam.train.checkpoints import Checkpoints
from cbam.train.config import TrainRunConfig
from cbam.train.evaluation import Evaluation
from cbam.train.job import ImageJob, prepare_images
from cbam.train.loop import Callbacks, Trained
from cbam.train.seeding import derive_seed, forked_rng
from cbam.train.state import whole_state
from cbam.train.stopping import Stop
from cbam.train.trackers import Metrics, check_trackers, open_trackers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

RESULT = "result.json"
_STEPS_BETWEEN_LOGS = 50


@dataclass(frozen=True)
class Network:
    """The only cell of a training."""

    name: str


@dataclass(kw_only=True)
class TrainJob(ImageJob[Network, "dict[str, Any]"]):
    """One training; its outcome is the content of `result.json`."""

    config: TrainRunConfig
    trackers: list[GeneralTracker] = field(default_factory=list)

    @property
    def cells(self) -> list[Network]:
        """The network."""
        return [Network(self.config.folder.name)]

    def is_done(self, cell: Network) -> bool:
        """Whether there is a result."""
        return self.folder.read_json(RESULT, "val_accuracy") is not None

    def open(self) -> None:
        """Write settings and data, unless the run is finished."""
        if not self.is_done(self.cells[0]):
            super().open()

    def announce(self, cells: Sequence[Network], done: Sequence[Network]) -> None:
        """Show how many epochs there are to train."""
        epochs = self.config.train.epochs
        each = f"to train for {counted(epochs, 'epoch')}"
        self.progress.start("network", len(cells), len(done), work=epochs, each=each)

    def do(self, cell: Network) -> str:
        """Train the network; write its weights and its result."""
        config, main = self.config, self.processes.is_main_process
        metrics = Metrics(self.folder)
        model = build(config, self.data)
        checkpoints = Checkpoints(self.folder.path / "checkpoints", config.keep)
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
            self._write_network("final", weights)
            if averaged is not None:
                self._write_network("final_ema", averaged)
            self.folder.write_json(RESULT, self._result(trained))
        return ""

    def finish(self, worked: Sequence[Network]) -> dict[str, Any]:
        """Return the result."""
        return self.folder.read_json(RESULT, "val_accuracy") or {}

    @cached_property
    def skeleton(self) -> nn.Module:
        """A second network of the same form, on the CPU, through which weights are saved."""
        return build(self.config, self.data)

    def _write_network(self, name: str, weights: dict[str, Tensor]) -> None:
        """Save weights into a folder that `cbam.from_pretrained` and `cbam evaluate` read."""
        self.skeleton.load_state_dict(weights)
        save_pretrained(
            self.skeleton,
            self.folder.path / name,
            self.config.model,
            class_names=self.data.classes,
            input_size=self.data.input_size,
            mean=self.data.mean,
            std=self.data.std,
        )

    def _callbacks(self, metrics: Metrics) -> Callbacks:
        main, steps_each = self.processes.is_main_process, self.steps_per_epoch(self.config.train)

        def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
            done = epoch * steps + step
            if main and not self.trackers:
                self.trackers += open_trackers(self.config.trackers, self.folder, self.settings(), done)
            if done % _STEPS_BETWEEN_LOGS == 0:
                for tracker in self.trackers:
                    tracker.log({"step/loss": loss}, done)

        def on_epoch(row: dict[str, Any]) -> None:
            row = {**row, "images": len(self.data.val)}
            if main:
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
                self._write_network("best", weights)

        return Callbacks(step=on_step, epoch=on_epoch, resume=on_resume, best=on_best)

    def _result(self, trained: Trained[Evaluation]) -> dict[str, Any]:
        scores, ema = trained.evaluation, trained.ema_evaluation
        best = max(self.folder.metrics.read(), key=lambda row: row["val_accuracy"])
        averaged = {"val_accuracy_ema": ema.accuracy, "val_top5_ema": ema.top5_accuracy} if ema else {}
        return {
            "val_accuracy": scores.accuracy,
            "val_top5": scores.top5_accuracy,
            "val_loss": scores.loss,
            "images": scores.images,
            **averaged,
            "best_epoch": best["epoch"],
            "best_val_accuracy": best["val_accuracy"],
            "epochs": self.config.train.epochs,
            "parameters": sum(parameter.numel() for parameter in self.skeleton.parameters()),
            "per_class_accuracy": scores.per_class_accuracy,
            "recipe": dataclasses.asdict(self.config.train),
            "seconds": trained.seconds,
            "finished": now(),
        }


def prepare(config: TrainRunConfig, command: list[str], progress: Progress) -> TrainJob:
    """Check everything that can be checked before training: folder, device, trackers, images, model.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the model.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_trackers(config.trackers)
    folder = RunFolder(config.folder)
    folder.check_settings(config.resolved(), TrainRunConfig)
    accelerator, data = prepare_images(config, config.train, folder, progress)
    job = TrainJob(
        config=config, command=command, folder=folder, progress=progress, processes=accelerator, data=data
    )
    count = sum(parameter.numel() for parameter in job.skeleton.parameters())
    progress.line(f"{config.model}, attention {config.attention}: {count:,} parameters")
    return job


def build(config: TrainRunConfig, data: ImageData) -> nn.Module:
    """Return the network as it is before training; its first weights depend on the seed alone.

    Args:
        config: Model, weights and attention.
        data: Gives the number of classes and the image size.

    Raises:
        CBAMError: The model, its weights or the sites for the attention do not exist.
    """
    with forked_rng(derive_seed(config.seed, "backbone")):
        model = build_model(
            config.model,
            len(data.classes),
            in_channels=data.input_size[0],
            pretrained=config.pretrained,
            weights=config.weights,
        )
    backbone, brought = split_attention(config.model)
    if brought and config.attention != "none":
        raise CBAMError(
            f"--model {config.model} already has attention. Type --attention none, or "
            f"--model {backbone} --attention {brought}"
        )
    if config.attention != "none":
        with forked_rng(derive_seed(config.seed, "attention")):
            attach(
                model,
                config.attention,
                split_sites([config.sites]),
                init="identity" if config.fine_tuning else "paper",
                input_size=data.input_size,
                **config.attention_options,
            )
    return model
