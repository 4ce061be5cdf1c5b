"""Train one network to the end, from its first step or from the last one that was saved.

`step` does one step, and the task says what a batch, its loss and a good network are; this file has the epochs,
validation, saving and stopping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn

from cbam.data.workers import naming_lost_workers
from cbam.formatting import counted
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.lost import naming_lost_processes
from cbam.train.nonfinite import NonFiniteLoss, all_finite, first_nonfinite
from cbam.train.recipe import Plan
from cbam.train.state import Position, as_files, restore
from cbam.train.step import TrainStep
from cbam.train.stopping import Interrupted, Preempted, Stop
from cbam.train.task import Batch, Scores, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

OnStep = Callable[[int, int, int, float], None]  # epoch (from 0), step (from 0), steps per epoch, loss
OnEpoch = Callable[[dict[str, Any]], None]  # one row of metrics.jsonl
OnResume = Callable[[int, int], None]  # epochs finished, steps after those
OnBest = Callable[[nn.Module], None]  # the model that validated best so far
# Reading a loss waits for the device, so on a GPU losses are read only every so many steps.
_STEPS_BETWEEN_READS = 16


@dataclass(frozen=True)
class Trained(Generic[Scores]):
    """A finished training: the model of the last epoch (no best epoch is chosen on validation images).

    `ema` and `ema_evaluation` belong to the moving average, where one was asked for; `epochs` are those that were
    trained; `seconds` counts all of them, those before an interruption too.
    """

    model: nn.Module
    evaluation: Scores
    ema: nn.Module | None
    ema_evaluation: Scores | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls.

    Attributes:
        step: After each step, with epoch, step, steps of an epoch and the last known loss.
        epoch: After each epoch, before its state is written, with the row for the metrics.
        resume: When an earlier state was found, with the epochs finished and the steps after those.
        best: After an epoch with the highest score so far, before its state is written.
    """

    step: OnStep = lambda epoch, step, steps, loss: None
    epoch: OnEpoch = lambda row: None
    resume: OnResume = lambda epochs, steps: None
    best: OnBest = lambda model: None


def train_model(
    model: nn.Module,
    task: Task[Any, Scores],
    *,
    peak: float,
    seed: int,
    checkpoints: Checkpoints,
    save_every: int | None = None,
    patience: int | None = None,
    accelerator: Accelerator | None = None,
    stop: Stop | None = None,
    callbacks: Callbacks | None = None,
) -> Trained[Scores]:
    """Train `model` in place; killed at any moment and called again, it resumes from the last step that was saved.

    Args:
        model: With the weights to start from.
        task: The images, the loss, the scores and the recipe.
        peak: The learning rate after the warm-up.
        seed: Decides the order of the images, their augmentation, and dropout.
        checkpoints: Where the state is kept; training resumes from the newest good one.
        save_every: Steps between two saves within an epoch; after each epoch the state is saved in any case.
        patience: Epochs without a better score after which the training ends; None: it never ends early.
        accelerator: Of `make_accelerator`; made from the recipe if not given.
        stop: A request to save and stop.
        callbacks: Called during the training.

    Raises:
        NonFiniteLoss: The loss is not finite; the message names the module.
        Preempted: `stop` was requested; the state is saved.
        Interrupted: The same, by Ctrl-C.
        ProcessLost: Another process of the training has ended.
        WorkerLost: A process that loads images has.
        CBAMError: The checkpoint is of another training, or the images are too few for the processes.
    """
    accelerator = accelerator or make_accelerator(task.recipe)
    callbacks = callbacks or Callbacks()
    loaders = task.loaders(seed, accelerator.process_index, accelerator.num_processes)
    plan = task.recipe.plan(len(loaders[0]))
    step = TrainStep(model, task, plan, peak, seed, accelerator)
    position = _resume(step, checkpoints, callbacks)
    loop = _Loop(
        step, task, plan, *loaders, position, checkpoints, save_every, patience, stop or Stop(), callbacks
    )
    scores = None
    with naming_lost_processes(accelerator.num_processes), naming_lost_workers():
        while not loop.is_done:
            scores = loop.run_epoch()
        evaluation, ema_evaluation = scores or loop.validate()
    step.release()
    return Trained(
        model, evaluation, step.averaged, ema_evaluation, loop.position.epoch, loop.position.seconds
    )


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
class _Loop(Generic[Scores]):
    """A running training: epochs from `position` on."""

    step: TrainStep
    task: Task[Any, Scores]
    plan: Plan
    train_images: DataLoader[Any]
    val_images: DataLoader[Any]
    position: Position
    checkpoints: Checkpoints
    save_every: int | None
    patience: int | None
    stop: Stop
    callbacks: Callbacks

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, the last one perhaps unfinished."""
        return -(-self.plan.steps // len(self.train_images))

    @property
    def is_done(self) -> bool:
        """Whether all epochs are finished, or so many brought no better score that there is no hope for the others."""
        at = self.position
        # A resumed training knows it again: the best epoch is part of the position.
        hopeless = self.patience is not None and at.best_epoch and at.epoch - at.best_epoch >= self.patience
        return at.epoch >= self.epochs or bool(hopeless and not at.step)

    def run_epoch(self) -> tuple[Scores, Scores | None] | None:
        """Finish the epoch, validate, save; return the scores of the model and of its average, if it is their turn."""
        row = self._train_epoch()
        started = time.perf_counter()
        number = self.position.epoch + 1
        scores = self.validate() if self._is_time_to_validate(number) else None
        took = time.perf_counter() - started
        position = self.position
        seconds = position.epoch_seconds + took
        self.position = Position(
            epoch=number,
            seconds=position.seconds + took,
            best_epoch=position.best_epoch,
            best_accuracy=position.best_accuracy,
        )
        judged = self.task.row(*scores) if scores else {}
        self.callbacks.epoch({"epoch": number, **row, **judged, "seconds": seconds})
        if scores and self.task.score(scores[0]) > position.best_accuracy:
            self.position.best_epoch, self.position.best_accuracy = number, self.task.score(scores[0])
            self.callbacks.best(self.step.model)
        self._save()
        if self._stops(0) and not self.is_done:
            raise self._stopped()
        return scores

    def validate(self) -> tuple[Scores, Scores | None]:
        """Return the scores of the model and of its average."""
        self.step.share_averaged_statistics()
        model, averaged, accelerator = self.step.model, self.step.averaged, self.step.accelerator
        plain = self.task.evaluate(model, self.val_images, accelerator)
        if problem := self.task.problem(plain):
            raise self._nonfinite(self._first_nonfinite_batch(), problem)
        return plain, self.task.evaluate(
            averaged, self.val_images, accelerator
        ) if averaged is not None else None

    def _train_epoch(self) -> dict[str, float]:
        at = self.position
        self.step.begin(at.epoch)
        self.train_images.batch_sampler.set_position(at.epoch, at.step)  # type: ignore[union-attr]
        steps, device = len(self.train_images), self.step.accelerator.device
        last = min(steps, self.plan.steps - at.epoch * steps)
        between = 1 if device.type == "cpu" else _STEPS_BETWEEN_READS
        pending: list[tuple[Tensor, Tensor, int]] = []
        waited, value = 0.0, math.nan
        mark = time.perf_counter()
        for step, loaded in enumerate(self.train_images, start=at.step):
            if step == last:
                break
            waited += time.perf_counter() - mark
            batch = self.task.to_device(loaded, device)
            pending.append((*self.step.backward(batch, at.epoch, step), len(batch)))
            where = f"epoch {at.epoch + 1}, step {step + 1} of {steps}"
            if len(pending) == between or step + 1 == last:
                value = self._count(pending, batch, where)
            self.step.update(at.epoch * steps + step)
            at.step = step + 1
            self.callbacks.step(at.epoch, step, steps, value)
            now = time.perf_counter()
            at.epoch_seconds, at.seconds = at.epoch_seconds + now - mark, at.seconds + now - mark
            mark = now
            if at.step < last and self._is_time_to_save(at.step):
                self._count(pending, batch, where)
                self._save()
                if self._stops(0):
                    raise self._stopped()
                mark = time.perf_counter()
        loss_all, correct_all, seen_all = self.step.over_processes(at.loss_sum, at.correct, at.seen)
        return {
            "train_loss": loss_all / seen_all,
            **self.task.training_row(correct_all, seen_all),
            "lr": self.step.lr,
            "images_per_s": seen_all / at.epoch_seconds,
            "data_wait_s": waited,
        }

    def _count(self, pending: list[tuple[Tensor, Tensor, int]], batch: Batch, where: str) -> float:
        """Add what the last steps counted to the epoch's sums; return the last loss."""
        if not pending:
            return math.nan
        losses, correct, sizes = zip(*pending, strict=True)
        pending.clear()
        values = torch.stack(losses).tolist()
        for value, size in zip(values, sizes, strict=True):
            if not math.isfinite(value):
                raise self._nonfinite(batch, f"the loss is {value} in {where}")
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

    def _is_time_to_validate(self, epoch: int) -> bool:
        return epoch == self.epochs or epoch % self.step.config.epochs_between_evaluations == 0

    def _stopped(self) -> BaseException:
        done = f"{self.position.epoch} of {self.epochs} epochs"
        after = f" and {counted(self.position.step, 'step')}" if self.position.step else ""
        if self.stop.reason == "SIGINT":
            return Interrupted(f"stopped by Ctrl-C after {done}{after}; everything is saved")
        return Preempted(
            f"stopped by {self.stop.reason or 'another process'} after {done}{after}; everything is saved"
        )

    def _first_nonfinite_batch(self) -> Batch:
        self.step.net.eval()
        with torch.no_grad(), self.step.accelerator.autocast():
            for loaded in self.val_images:
                batch = self.task.to_device(loaded, self.step.accelerator.device)
                if not all_finite(self.step.model(*self.task.network_inputs(batch, training=False))):
                    break
        return batch

    def _nonfinite(self, batch: Batch, what: str) -> NonFiniteLoss:
        inputs = self.task.network_inputs(batch, training=self.step.model.training)
        with self.step.accelerator.autocast():
            where = first_nonfinite(self.step.model, *inputs)
        lr = self.step.optimizer.param_groups[0]["lr"]
        return NonFiniteLoss(
            f"{what}: {where}. The learning rate was {lr:.3g}, the precision {self.step.config.precision!r}. "
            "Try a lower --lr, or --precision no, with a new --output."
        )
