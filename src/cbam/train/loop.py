"""Train one classifier to the end, from its first step or from the last one that was saved.

`step` does one step; this file has the epochs, validation, saving and stopping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cbam.data.batches import make_loader
from cbam.errors import CBAMError
from cbam.train.checkpoints import Checkpoints
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation, evaluate
from cbam.train.nonfinite import NonFiniteLoss, first_nonfinite
from cbam.train.state import Position, as_files, restore
from cbam.train.step import LAYOUT, TrainStep
from cbam.train.stopping import Preempted, Stop

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cbam.data.image_data import ImageData

OnStep = Callable[[int, int, int, float], None]  # epoch (from 0), step (from 0), steps per epoch, loss
OnEpoch = Callable[[dict[str, Any]], None]  # one row of metrics.jsonl
OnResume = Callable[[int, int], None]  # epochs finished, steps after those
OnBest = Callable[[nn.Module, Evaluation], None]  # the model that validated best so far
# Reading a loss waits for the device, so on a GPU losses are read only every so many steps.
_STEPS_BETWEEN_READS = 16


@dataclass(frozen=True)
class Trained:
    """A finished training: the model of the last epoch (no best epoch is chosen on validation images).

    `ema` and `ema_evaluation` belong to the moving average, where one was asked for; `seconds` counts all epochs, those
    before an interruption too.
    """

    model: nn.Module
    evaluation: Evaluation
    ema: nn.Module | None
    ema_evaluation: Evaluation | None
    seconds: float


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls.

    Attributes:
        step: After each step, with epoch, step, steps of an epoch and the last known loss.
        epoch: After each epoch, before its state is written, with the row for the metrics.
        resume: When an earlier state was found, with the epochs finished and the steps after those.
        best: After an epoch with the highest accuracy so far, before its state is written.
    """

    step: OnStep = lambda epoch, step, steps, loss: None
    epoch: OnEpoch = lambda row: None
    resume: OnResume = lambda epochs, steps: None
    best: OnBest = lambda model, evaluation: None


def train_model(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    seed: int,
    checkpoints: Checkpoints,
    save_every: int | None = None,
    fine_tuning: bool = False,
    accelerator: Accelerator | None = None,
    stop: Stop | None = None,
    callbacks: Callbacks | None = None,
) -> Trained:
    """Train `model` in place; killed at any moment and called again, it resumes from the last step that was saved.

    Args:
        model: A classifier, (N, C, H, W) -> (N, classes), with the weights to start from.
        data: Training and validation images.
        config: The recipe.
        seed: Decides the order of the images, their augmentation, and dropout.
        checkpoints: Where the state is kept; training resumes from the newest good one.
        save_every: Steps between two saves within an epoch; after each epoch the state is saved in any case.
        fine_tuning: The weights come from an earlier training: a lower default learning rate.
        accelerator: Of `make_accelerator`; made from `config` if not given.
        stop: A request to save and stop.
        callbacks: Called during the training.

    Raises:
        NonFiniteLoss: The loss is not finite; the message names the module.
        Preempted: `stop` was requested; the state is saved.
        CBAMError: The checkpoint is of another training, or the images are too few for the processes.
    """
    accelerator = accelerator or make_accelerator(config)
    callbacks = callbacks or Callbacks()
    train_images, val_images = _loaders(data, config, seed, accelerator)
    step = TrainStep(model, len(data.classes), len(train_images), config, seed, fine_tuning, accelerator)
    position = _resume(step, checkpoints, callbacks)
    loop = _Loop(step, train_images, val_images, position, checkpoints, save_every, stop or Stop(), callbacks)
    scores = None
    while loop.position.epoch < config.epochs:
        scores = loop.run_epoch()
    evaluation, ema_evaluation = scores or loop.validate()
    step.release()
    return Trained(model, evaluation, step.averaged, ema_evaluation, loop.position.seconds)


def _loaders(
    data: ImageData, config: TrainConfig, seed: int, accelerator: Accelerator
) -> tuple[DataLoader, DataLoader]:
    rank, world = accelerator.process_index, accelerator.num_processes
    if world > 1 and len(data.train) < config.batch_size:
        raise CBAMError(
            f"{len(data.train)} training images are less than one batch of {config.batch_size}, which {world} "
            "processes cannot share evenly. Give a smaller --batch-size"
        )
    load = partial(
        make_loader, batch_size=config.batch_size, seed=seed, workers=config.workers, rank=rank, world=world
    )
    # A last, smaller batch would weigh its images more; a set smaller than one batch is all there is.
    drop_last = len(data.train) > config.batch_size
    return load(data.train, shuffle=True, drop_last=drop_last), load(data.val, shuffle=False)


def _resume(step: TrainStep, checkpoints: Checkpoints, callbacks: Callbacks) -> Position:
    """Read the newest good checkpoint into the network, if there is one; return how far it is."""
    position = Position()
    if found := checkpoints.newest_good():
        position = restore(found, step.model, step.optimizer, step.averaged, step.scaler)
        callbacks.resume(position.epoch, position.step)
        if (
            not step.accelerator.is_main_process
        ):  # the sums of all processes were saved: one process takes them
            position.loss_sum, position.correct, position.seen = 0.0, 0, 0
    step.accelerator.wait_for_everyone()  # all have read before the first one deletes
    return position


@dataclass
class _Loop:
    """A running training: epochs from `position` on."""

    step: TrainStep
    train_images: DataLoader
    val_images: DataLoader
    position: Position
    checkpoints: Checkpoints
    save_every: int | None
    stop: Stop
    callbacks: Callbacks

    def run_epoch(self) -> tuple[Evaluation, Evaluation | None]:
        """Finish the epoch, validate, save; return the scores of the model and of its average."""
        row = self._train_epoch()
        started = time.perf_counter()
        scores = self.validate()
        took = time.perf_counter() - started
        position = self.position
        seconds = position.epoch_seconds + took
        self.position = Position(
            epoch=position.epoch + 1,
            seconds=position.seconds + took,
            best_epoch=position.best_epoch,
            best_accuracy=position.best_accuracy,
        )
        self.callbacks.epoch({"epoch": position.epoch + 1, **row, **_score_row(*scores), "seconds": seconds})
        if scores[0].accuracy > position.best_accuracy:
            self.position.best_epoch, self.position.best_accuracy = self.position.epoch, scores[0].accuracy
            self.callbacks.best(self.step.model, scores[0])
        self._save()
        if self._stops(0) and self.position.epoch < self.step.config.epochs:
            raise self._preempted()
        return scores

    def validate(self) -> tuple[Evaluation, Evaluation | None]:
        """Return the scores of the model and of its average."""
        self.step.share_averaged_statistics()
        model, averaged, accelerator = self.step.model, self.step.averaged, self.step.accelerator
        plain = evaluate(model, self.val_images, accelerator)
        if not math.isfinite(plain.loss):
            raise self._nonfinite(self._first_nonfinite_batch(), f"the validation loss is {plain.loss}")
        return plain, evaluate(averaged, self.val_images, accelerator) if averaged is not None else None

    def _train_epoch(self) -> dict[str, float]:
        self.step.net.train()
        at = self.position
        self.train_images.batch_sampler.set_position(at.epoch, at.step)  # type: ignore[union-attr]
        steps, device = len(self.train_images), self.step.accelerator.device
        between = 1 if device.type == "cpu" else _STEPS_BETWEEN_READS
        pending: list[tuple[Tensor, Tensor, int]] = []
        waited, value = 0.0, math.nan
        mark = time.perf_counter()
        for step, (images, labels) in enumerate(self.train_images, start=at.step):
            waited += time.perf_counter() - mark
            images = images.to(device, non_blocking=True, memory_format=LAYOUT)
            labels = labels.to(device, non_blocking=True)
            pending.append((*self.step.backward(images, labels, at.epoch, step), len(labels)))
            where = f"epoch {at.epoch + 1}, step {step + 1} of {steps}"
            if len(pending) == between or step + 1 == steps:
                value = self._count(pending, images, where)
            self.step.update(at.epoch * steps + step)
            at.step = step + 1
            self.callbacks.step(at.epoch, step, steps, value)
            now = time.perf_counter()
            at.epoch_seconds, at.seconds = at.epoch_seconds + now - mark, at.seconds + now - mark
            mark = now
            if at.step < steps and self._is_time_to_save(at.step):
                self._count(pending, images, where)
                self._save()
                if self._stops(0):
                    raise self._preempted()
                mark = time.perf_counter()
        loss_all, correct_all, seen_all = self.step.over_processes(at.loss_sum, at.correct, at.seen)
        return {
            "train_loss": loss_all / seen_all,
            "train_accuracy": correct_all / seen_all,
            "lr": self.step.lr,
            "images_per_s": seen_all / at.epoch_seconds,
            "data_wait_s": waited,
        }

    def _count(self, pending: list[tuple[Tensor, Tensor, int]], images: Tensor, where: str) -> float:
        """Add what the last steps counted to the epoch's sums; return the last loss."""
        if not pending:
            return math.nan
        losses, correct, sizes = zip(*pending, strict=True)
        pending.clear()
        values = torch.stack(losses).tolist()
        for value, size in zip(values, sizes, strict=True):
            if not math.isfinite(value):
                raise self._nonfinite(images, f"the loss is {value} in {where}")
            self.position.loss_sum += value * size
        self.position.correct += int(torch.stack(correct).sum())
        self.position.seen += sum(sizes)
        return values[-1]

    def _save(self) -> None:
        step, at = self.step, self.position
        # Sums of all processes; when the training resumes, only the first process takes them.
        loss_sum, correct, seen = step.over_processes(at.loss_sum, at.correct, at.seen)
        shared = Position(**{**vars(at), "loss_sum": loss_sum, "correct": int(correct), "seen": int(seen)})
        files = as_files(shared, step.model, step.optimizer, step.averaged, step.scaler)
        if step.accelerator.is_main_process:
            self.checkpoints.write(at.epoch * len(self.train_images) + at.step, files)
        step.accelerator.wait_for_everyone()

    def _is_time_to_save(self, step: int) -> bool:
        wanted = self.save_every is not None and step % self.save_every == 0
        return self._stops(step) or wanted

    def _stops(self, step: int) -> bool:
        return self.stop.agreed(self.step.accelerator, step)

    def _preempted(self) -> Preempted:
        done = f"{self.position.epoch} of {self.step.config.epochs} epochs"
        after = f" and {self.position.step} steps" if self.position.step else ""
        return Preempted(
            f"stopped by {self.stop.reason or 'another process'} after {done}{after}; everything is saved"
        )

    def _first_nonfinite_batch(self) -> Tensor:
        device = self.step.accelerator.device
        self.step.net.eval()
        with torch.no_grad(), self.step.accelerator.autocast():
            for images, _ in self.val_images:
                if not torch.isfinite(self.step.model(images.to(device))).all():
                    break
        return images.to(device)

    def _nonfinite(self, images: Tensor, what: str) -> NonFiniteLoss:
        with self.step.accelerator.autocast():
            where = first_nonfinite(self.step.model, images)
        lr = self.step.optimizer.param_groups[0]["lr"]
        return NonFiniteLoss(
            f"{what}: {where}. The learning rate was {lr:.3g}, the precision {self.step.config.precision!r}. "
            "Try a lower --lr, or --precision no, with a new --output."
        )


def _score_row(plain: Evaluation, ema: Evaluation | None) -> dict[str, float]:
    row = {"val_loss": plain.loss, "val_accuracy": plain.accuracy, "val_top5": plain.top5_accuracy}
    return {**row, "val_accuracy_ema": ema.accuracy} if ema else row
