"""Train one classifier, from its first or its last finished epoch to the end.

accelerate moves things to the device, casts and joins the processes (`accelerate launch -m cbam compare ...` for
several); timm brings optimiser, schedule and moving average. What remains is the loop, to be read top to bottom.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cbam.data.addressing import make_loader
from cbam.train.checkpoint import load_state, save_state
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation, evaluate
from cbam.train.nonfinite import NonFiniteLoss, first_nonfinite
from cbam.train.seeding import derive_seed, seed_everything

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cbam.data.image_data import ImageData

OnStep = Callable[[int, int, int, float], None]  # epoch (from 0), step (from 0), steps per epoch, loss
OnEpoch = Callable[[dict[str, Any]], None]  # one row of metrics.jsonl


@dataclass(frozen=True)
class Trained:
    """What a finished training hands back: the model of the last epoch (no best epoch is chosen on validation images).

    `ema` and `ema_evaluation` belong to the moving average, where one was asked for; `seconds` counts all epochs, those
    before an interruption too.
    """

    model: nn.Module
    evaluation: Evaluation
    ema: nn.Module | None
    ema_evaluation: Evaluation | None
    seconds: float


def train_cell(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    seed: int,
    state_file: Path,
    fine_tuning: bool = False,
    accelerator: Accelerator | None = None,
    on_step: OnStep = lambda epoch, step, steps, loss: None,
    on_epoch: OnEpoch = lambda row: None,
    on_resume: Callable[[int], None] = lambda epochs_done: None,
) -> Trained:
    """Train `model` in place; killed at any moment and called again, it goes on from its last finished epoch.

    Args:
        model: A classifier, (N, C, H, W) -> (N, classes), with the weights to start from.
        data: Training and validation images.
        config: The recipe.
        seed: Decides the order of the images, their augmentation, and dropout.
        state_file: Where the state is kept after each epoch; an earlier one is taken up.
        fine_tuning: The weights come from an earlier training: a lower default learning rate.
        accelerator: Of `make_accelerator`; made from `config` if not given.
        on_step: Called after each step.
        on_epoch: Called after each epoch, before its state is written.
        on_resume: Called with the number of finished epochs when there are some.

    Raises:
        NonFiniteLoss: The loss is not finite; the message names the module.
    """
    accelerator = accelerator or make_accelerator(config)
    load = partial(make_loader, batch_size=config.batch_size, seed=seed, workers=config.workers)
    # A last, smaller batch would weigh its images more; a set smaller than one batch is all there is.
    drop_last = len(data.train) > config.batch_size
    train_images = load(data.train, shuffle=True, drop_last=drop_last)
    val_images = load(data.val, shuffle=False)
    # channels_last is 1.7 times as fast for small ResNets on a CPU, and what tensor cores want.
    model.to(accelerator.device).to(memory_format=torch.channels_last)
    peak = config.peak_lr(fine_tuning=fine_tuning)
    optimizer = create_optimizer_v2(model, opt=config.optimizer, lr=peak, weight_decay=config.weight_decay)
    ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
    net, optimizer, train_images, val_images = accelerator.prepare(model, optimizer, train_images, val_images)
    schedule = _cosine(optimizer, len(train_images), config.epochs, peak)
    job = _Job(config, accelerator, net, model, ema, optimizer, schedule, train_images, val_images)

    if accelerator.scaler:  # one accelerator serves all cells: none may start with the scale of the last
        accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
    epochs_done, seconds = job.restore(state_file)
    if epochs_done:
        on_resume(epochs_done)
    scores = None
    for epoch in range(epochs_done, config.epochs):
        started = time.perf_counter()
        # Dropout too is a function of (seed, epoch, process): no generator's state needs to be saved.
        seed_everything(derive_seed(seed, "epoch", epoch, accelerator.process_index))
        row = job.train_epoch(epoch, on_step)
        scores = job.validate()
        seconds += time.perf_counter() - started
        on_epoch({"epoch": epoch + 1, **row, **_score_row(*scores), "seconds": time.perf_counter() - started})
        job.save(state_file, epoch + 1, seconds)
    evaluation, ema_evaluation = scores or job.validate()
    accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return Trained(model, evaluation, ema.module if ema else None, ema_evaluation, seconds)


@dataclass
class _Job:
    """The objects that an epoch touches; `net` is `model` as accelerate wrapped it."""

    config: TrainConfig
    accelerator: Accelerator
    net: nn.Module
    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Any
    schedule: CosineLRScheduler
    train_images: DataLoader
    val_images: DataLoader

    def train_epoch(self, epoch: int, on_step: OnStep) -> dict[str, float]:
        self.net.train()
        self.train_images.batch_sampler.set_position(epoch)
        steps = len(self.train_images)
        loss_sum, seen, waited = 0.0, 0, 0.0
        hits = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        started = mark = time.perf_counter()
        for step, (images, labels) in enumerate(self.train_images):
            waited += time.perf_counter() - mark
            updates = epoch * steps + step
            self.schedule.step_update(updates)
            logits = self.net(images)  # (N, classes)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
            self.accelerator.backward(loss)
            value = loss.item()
            if not math.isfinite(value):
                raise self._nonfinite(
                    images, f"the loss is {value} in epoch {epoch + 1}, step {step + 1} of {steps}"
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema:
                self.ema.update(self.model, step=updates + 1)
            loss_sum += value * len(labels)
            hits += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            on_step(epoch, step, steps, value)
            mark = time.perf_counter()
        took = time.perf_counter() - started
        loss_all, hits_all, seen_all = self._over_processes(loss_sum, hits.item(), seen)
        return {
            "train_loss": loss_all / seen_all,
            "train_accuracy": hits_all / seen_all,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": seen_all / took,
            "data_wait_s": waited,
        }

    def validate(self) -> tuple[Evaluation, Evaluation | None]:
        if self.ema and self.accelerator.num_processes > 1:
            # Each process averaged the batch norm statistics of its own images; process 0's are saved, so judge those.
            for buffer in self.ema.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        plain = evaluate(self.net, self.val_images, self.accelerator)
        if not math.isfinite(plain.loss):
            raise self._nonfinite(self._first_nonfinite_batch(), f"the validation loss is {plain.loss}")
        return plain, evaluate(self.ema.module, self.val_images, self.accelerator) if self.ema else None

    def _first_nonfinite_batch(self) -> Tensor:
        self.net.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for images, _ in self.val_images:
                if not torch.isfinite(self.model(images)).all():
                    break
        return images

    def save(self, file: Path, epochs_done: int, seconds: float) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "epochs_done": epochs_done,
                "seconds": seconds,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.module.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
            }
            save_state(file, state)
        self.accelerator.wait_for_everyone()

    def restore(self, file: Path) -> tuple[int, float]:
        state = load_state(file, like=self.model.state_dict())
        if state is None:
            return 0, 0.0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["epochs_done"], state["seconds"]

    def _over_processes(self, *sums: float) -> list[float]:
        if self.accelerator.num_processes == 1:
            return list(sums)
        return self.accelerator.reduce(torch.tensor(sums, device=self.accelerator.device), "sum").tolist()

    def _nonfinite(self, images: Tensor, what: str) -> NonFiniteLoss:
        with self.accelerator.autocast():
            where = first_nonfinite(self.model, images)
        lr = self.optimizer.param_groups[0]["lr"]
        return NonFiniteLoss(
            f"{what}: {where}. The learning rate was {lr:.3g}, the precision {self.config.precision!r}. "
            "Try a lower --lr, or --precision no, into a new --output."
        )


def _cosine(optimizer: Any, steps: int, epochs: int, peak: float) -> CosineLRScheduler:
    """Warm up over the first epoch, or over a tenth of all steps where that is less, then fall to zero."""
    warmup = min(steps, steps * epochs // 10)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps * epochs - warmup,
        warmup_t=warmup,
        warmup_lr_init=peak / (warmup + 1),  # a first step with a rate of zero would be wasted
        warmup_prefix=True,
        t_in_epochs=False,
    )


def _score_row(plain: Evaluation, ema: Evaluation | None) -> dict[str, float]:
    row = {"val_loss": plain.loss, "val_accuracy": plain.accuracy}
    return {**row, "val_accuracy_ema": ema.accuracy} if ema else row
