"""Common to all runs that train: load the images, train a network, show the progress."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import nn

from cbam.data import ImageData
from cbam.formatting import counted, duration
from cbam.pretrained.config import FILE, Config
from cbam.pretrained.saving import describe_network
from cbam.runs.environment import describe_environment
from cbam.runs.folder import RunFolder
from cbam.runs.job import C, Job, Outcome
from cbam.runs.progress import Progress
from cbam.train.batch_size import AUTO, check_automatic, find_batch_size
from cbam.train.checkpoints import Checkpoints
from cbam.train.classification import Classification, ImageTask
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.images import ImageConfig
from cbam.train.loop import Callbacks, Trained, train_model
from cbam.train.multilabel import MultiLabel, check_recipe
from cbam.train.state import MODEL
from cbam.train.stopping import Stop
from cbam.train.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingConfig(Protocol):
    """The options of a run that trains."""

    @property
    def train(self) -> Any:
        """The recipe."""

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""


class TrainingData(Protocol):
    """What a run trains on."""

    @property
    def source(self) -> str:
        """Where it is from and how it is split."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about it."""

    @property
    def identity(self) -> dict[str, Any]:
        """What trainings must share to be comparable."""


Data = TypeVar("Data", bound=TrainingData)


@dataclass(kw_only=True)
class TrainingJob(Job[C, Outcome], Generic[C, Outcome, Data]):
    """A run that trains networks, on all processes that accelerate joins.

    Attributes:
        data: The images.
        processes: The accelerator.
    """

    processes: Accelerator
    data: Data

    @abstractmethod
    def task(self, recipe: Any) -> Task[Any, Any]:
        """Return what is trained."""

    @abstractmethod
    def steps_per_epoch(self, recipe: Any) -> int:
        """Return the steps of an epoch."""

    @abstractmethod
    def about_data(self) -> dict[str, Any]:
        """Return what `data.json` says of the images beside their identity."""

    @abstractmethod
    def score_text(self, row: dict[str, Any]) -> str:
        """Format the main score in a row of the metrics for the terminal."""

    def epochs(self, recipe: Any) -> int:
        """Return the epochs of a training, the last one perhaps unfinished."""
        steps = self.steps_per_epoch(recipe)
        return -(-int(recipe.plan(steps).steps) // steps)

    def environment(self) -> dict[str, Any]:
        """Return machine and software versions."""
        device = self.processes.device.type
        return describe_environment(self.command, device, self.processes.num_processes)

    def open(self) -> None:
        """Write settings, environment and a description of the images."""
        super().open()
        about = {**self.about_data(), "notices": list(self.data.notices)}
        self.folder.write_json("data.json", {**self.data.identity, "source": self.data.source, **about})

    def train(
        self,
        config: TrainingConfig,
        model: nn.Module,
        seed: int,
        checkpoints: Checkpoints,
        callbacks: Callbacks,
        *,
        save_every: int | None = None,
        patience: int | None = None,
        stop: Stop | None = None,
    ) -> Trained[Any]:
        """Train a network of the run, or resume it, and show the progress.

        Args:
            config: The run's; its recipe counts.
            model: See `cbam.train.loop.train_model`, as for the rest.
            seed: Of this network.
            checkpoints: Of this network.
            callbacks: Called before the display changes.
            save_every: Steps between two saves.
            patience: Epochs without a better score after which the training ends.
            stop: A request to save and stop.
        """
        return train_model(
            model,
            self.task(config.train),
            peak=config.peak_lr(),
            seed=seed,
            checkpoints=checkpoints,
            save_every=save_every,
            patience=patience,
            accelerator=self.processes,
            stop=stop,
            callbacks=self._shown(callbacks, config.train),
        )

    def _shown(self, callbacks: Callbacks, recipe: Any) -> Callbacks:
        """Return callbacks that also move the display."""
        progress, epochs = self.progress, self.epochs(recipe)

        def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
            callbacks.step(epoch, step, steps, loss)
            text = f"epoch {epoch + 1}/{epochs}  step {step + 1}/{steps}  loss {loss:.3f}"
            progress.at(epoch + (step + 1) / steps, text)

        def on_epoch(row: dict[str, Any]) -> None:
            callbacks.epoch(row)
            score = self.score_text(row)
            short = f"{score}  {row['images_per_s']:,.0f} images/s"
            progress.report(epoch_text(row, epochs, score), short)

        def on_resume(done: int, steps: int) -> None:
            callbacks.resume(done, steps)
            after = f" and {counted(steps, 'step')}" if steps else ""
            part = steps / self.steps_per_epoch(recipe)
            progress.resume(done + part, f"resumes after {counted(done, 'epoch')}{after}")

        return Callbacks(step=on_step, epoch=on_epoch, resume=on_resume, best=callbacks.best)


@dataclass(kw_only=True)
class ImageJob(TrainingJob[C, Outcome, ImageData]):
    """A run that trains networks which judge whole images."""

    def task(self, recipe: TrainConfig) -> ImageTask[Any]:
        """Return the training of a classifier, or of a network for several labels."""
        return (
            MultiLabel(recipe, self.data)
            if self.data.task == "multilabel"
            else Classification(recipe, self.data)
        )

    def steps_per_epoch(self, recipe: TrainConfig) -> int:
        """Return the steps of an epoch."""
        return max(1, len(self.data.train) // recipe.batch_size)

    def about_data(self) -> dict[str, Any]:
        """Return how images are prepared for the network."""
        return {"mean": list(self.data.mean), "std": list(self.data.std), "resize": self.data.resize}

    def score_text(self, row: dict[str, Any]) -> str:
        """Format the accuracy or the mean average precision, and that of the moving average."""
        if "val_map" in row:
            averaged = f"  average {100 * row['val_map_ema']:.2f} %" if "val_map_ema" in row else ""
            return f"val mAP {100 * row['val_map']:.2f} %{averaged}"
        averaged = f"  average {100 * row['val_accuracy_ema']:.2f} %" if "val_accuracy_ema" in row else ""
        return f"val {100 * row['val_accuracy']:.2f} %{averaged}"


def prepare_images(
    config: ImageConfig, recipe: TrainConfig, folder: RunFolder, progress: Progress
) -> tuple[Accelerator, ImageData]:
    """Return device and images, and show what the images are.

    Args:
        config: Which images.
        recipe: Where to compute.
        folder: The run's, which may hold the results on other images.
        progress: Where to show them.

    Raises:
        CBAMError: The device or the images are not there, or the run in the folder used others.
    """
    accelerator = make_accelerator(recipe)
    # The first process writes the index of shards, or what the doctor found; the others read it.
    with accelerator.main_process_first():
        data = config.load()
    if data.task == "multilabel":
        check_recipe(recipe, config.labels or data.name)
    if recipe.batch_size == AUTO:
        check_automatic(accelerator)
    folder.check_data(data.identity)
    progress.line(f"images: {data.source}")
    for notice in data.notices:
        progress.note(notice)
    what = "labels" if data.task == "multilabel" else "classes"
    progress.line(
        f"{len(data.train):,} images to train on, {len(data.val):,} to validate, {len(data.classes)} {what}, "
        f"{'x'.join(map(str, data.input_size))} each"
    )
    progress.line(f"training images: {data.prepared[0]}; validation images: {data.prepared[1]}")
    if frozen := recipe.freeze_backbone:
        until = "epoch 1 trains" if frozen == 1 else f"epochs 1 to {frozen} train"
        progress.line(f"{until} the classifier and the attention only")
    return accelerator, data


def with_batch_size(
    recipe: TrainConfig,
    models: Iterable[Callable[[], nn.Module]],
    data: ImageData,
    accelerator: Accelerator,
    progress: Progress,
) -> TrainConfig:
    """Return the recipe with a batch size that fits, where it is to be found.

    Args:
        recipe: Of the run.
        models: Return the networks that are to be trained, one at a time.
        data: Gives the size and number of the images.
        accelerator: Where they are trained.
        progress: Is told what was found.
    """
    if recipe.batch_size != AUTO:
        return recipe
    found = find_batch_size(models, data.input_size, len(data.train), recipe, accelerator)
    progress.line(
        f"batch size {found}: what fits into the GPU's memory; the default rate is for batches of 128 (--lr)"
    )
    return replace(recipe, batch_size=found)


def describe_trained(
    model: nn.Module, name: str, data: ImageData, *, widened_to: int | None = None
) -> Config:
    """Return what config.json says of a network that is trained on these images, without the digest of its weights.

    Args:
        model: The network.
        name: Of its backbone.
        data: Gives the classes, and how images become its input.
        widened_to: Of a control the target of `cbam.models.match_parameters`.
    """
    return describe_network(
        model, name, class_names=data.classes, input_size=data.input_size, mean=data.mean, std=data.std,
        task=data.task, resize=data.resize, interpolation=data.interpolation, widened_to=widened_to,
    )  # fmt: skip


def with_config(files: Mapping[str, bytes], network: Config) -> dict[str, bytes]:
    """Return config.json for the network in a checkpoint, so that it opens like a folder of `save_pretrained`."""
    digest = hashlib.sha256(files[MODEL]).hexdigest()
    return {FILE: replace(network, sha256=digest).to_json().encode()}


def epoch_text(row: dict[str, Any], epochs: int, score: str) -> str:
    """Format a row of metrics.jsonl for the terminal.

    >>> row = {"epoch": 2, "train_loss": 0.5, "lr": 0.09, "images_per_s": 1830.2, "data_wait_s": 0.1, "seconds": 5.0}
    >>> epoch_text(row, 10, "val 84.00 %")
    'epoch 2/10  loss 0.500  val 84.00 %  lr 0.09  1,830 images/s  waiting for data 2 %  in 5 s'
    """
    parts = (
        f"epoch {row['epoch']}/{epochs}",
        f"loss {row['train_loss']:.3f}",
        score,
        f"lr {row['lr']:.2g}",
        f"{row['images_per_s']:,.{0 if row['images_per_s'] >= 10 else 1}f} images/s",
        f"waiting for data {100 * row['data_wait_s'] / max(row['seconds'], 1e-9):.0f} %",
        f"in {duration(row['seconds'])}",
    )
    return "  ".join(filter(None, parts))
