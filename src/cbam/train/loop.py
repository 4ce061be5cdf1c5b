"""Train one classifier, from its first step or the last one that was saved to the end.

accelerate moves things to the device, casts and joins the processes (`accelerate launch`, torchrun); timm brings
optimiser, schedule and moving average. What remains is the loop, to be read top to bottom.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cbam.data.batches import make_loader
from cbam.errors import CBAMError
from cbam.train.checkpoints import Checkpoints
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation, evaluate
from cbam.train.mixing import Mixing
from cbam.train.nonfinite import NonFiniteLoss, first_nonfinite
from cbam.train.parameters import parameter_groups
from cbam.train.schedule import make_schedule
from cbam.train.seeding import derive_seed, seed_everything
from cbam.train.sharding import set_sync, shard
from cbam.train.state import Position, as_files, restore
from cbam.train.stopping import Preempted, Stop

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cbam.data.image_data import ImageData

OnStep = Callable[[int, int, int, float], None]  # epoch (from 0), step (from 0), steps per epoch, loss
OnEpoch = Callable[[dict[str, Any]], None]  # one row of metrics.jsonl
OnBest = Callable[[nn.Module, Evaluation], None]  # the model that validated best so far
_STEPS_BETWEEN_LOOKS = 16
# 1.7 times as fast for small ResNets on a CPU, and what tensor cores want.
_LAYOUT = torch.channels_last


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


@dataclass(frozen=True)
class Watchers:
    """What is called as the training goes on.

    Attributes:
        step: After each step, with epoch, step, steps of an epoch and the last known loss.
        epoch: After each epoch, before its state is written, with the row for the metrics.
        resume: When an earlier state was found, with the epochs finished and the steps after those.
        best: After an epoch with the highest accuracy so far, before its state is written.
    """

    step: OnStep = lambda epoch, step, steps, loss: None
    epoch: OnEpoch = lambda row: None
    resume: Callable[[int, int], None] = lambda epochs, steps: None
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
    watchers: Watchers | None = None,
) -> Trained:
    """Train `model` in place; killed at any moment and called again, it goes on from the last step that was saved.

    Args:
        model: A classifier, (N, C, H, W) -> (N, classes), with the weights to start from.
        data: Training and validation images.
        config: The recipe.
        seed: Decides the order of the images, their augmentation, and dropout.
        checkpoints: Where the state is kept; the newest good one is taken up.
        save_every: Steps between two saves within an epoch; after each epoch the state is saved in any case.
        fine_tuning: The weights come from an earlier training: a lower default learning rate.
        accelerator: Of `make_accelerator`; made from `config` if not given.
        stop: Tells when to save and stop.
        watchers: Called as the training goes on.

    Raises:
        NonFiniteLoss: The loss is not finite; the message names the module.
        Preempted: `stop` said so; the state is saved.
        CBAMError: The checkpoint is of another training, or the processes cannot do what is asked.
    """
    accelerator = accelerator or make_accelerator(config)
    job = _Job.of(model, data, config, seed, fine_tuning, accelerator)
    job.checkpoints, job.watchers, job.stop = checkpoints, watchers or Watchers(), stop or Stop()
    job.save_every = save_every
    if found := checkpoints.newest_good():
        job.position = restore(found, model, job.optimizer, job.averaged, accelerator.scaler)
        job.watchers.resume(job.position.epoch, job.position.step)
        if not accelerator.is_main_process:  # the sums of all processes were saved: one goes on with them
            job.position.loss_sum, job.position.hits, job.position.seen = 0.0, 0, 0
    accelerator.wait_for_everyone()  # all have read before the first one deletes
    scores = None
    while job.position.epoch < config.epochs:
        scores = job.run_epoch()
    evaluation, ema_evaluation = scores or job.validate()
    if not config.shard:
        accelerator.unwrap_model(job.net, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return Trained(model, evaluation, job.averaged, ema_evaluation, job.position.seconds)


@dataclass
class _Job:
    """The objects that a step touches; `net` is `model` as accelerate wrapped it."""

    config: TrainConfig
    seed: int
    accelerator: Accelerator
    net: nn.Module
    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Any
    schedule: Any
    mixing: Mixing
    train_images: DataLoader
    val_images: DataLoader
    position: Position = field(default_factory=Position)
    checkpoints: Checkpoints = None  # type: ignore[assignment]  # set before the first use, as are the next
    watchers: Watchers = field(default_factory=Watchers)
    stop: Stop = field(default_factory=Stop)
    save_every: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: ImageData,
        config: TrainConfig,
        seed: int,
        fine_tuning: bool,
        accelerator: Accelerator,
    ) -> _Job:
        rank, world = accelerator.process_index, accelerator.num_processes
        load = partial(
            make_loader,
            batch_size=config.batch_size,
            seed=seed,
            workers=config.workers,
            rank=rank,
            world=world,
        )
        # A last, smaller batch would weigh its images more; a set smaller than one batch is all there is.
        drop_last = len(data.train) > config.batch_size
        if world > 1 and len(data.train) < config.batch_size:
            raise CBAMError(
                f"{len(data.train)} training images are less than one batch of {config.batch_size}, which {world} "
                "processes cannot share evenly. Give a smaller --batch-size"
            )
        train_images, val_images = (
            load(data.train, shuffle=True, drop_last=drop_last),
            load(data.val, shuffle=False),
        )
        if config.sync_bn and world > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(accelerator.device)
        if config.shard:
            shard(model, accelerator.device.type, world)
        else:  # FSDP2 takes contiguous weights only
            model.to(memory_format=_LAYOUT)
        peak = config.peak_lr(fine_tuning=fine_tuning)
        optimizer = create_optimizer_v2(parameter_groups(model, config), opt=config.optimizer, lr=peak)
        ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        net = model if config.shard else accelerator.prepare(model)
        optimizer = accelerator.prepare(optimizer)
        schedule = make_schedule(optimizer, len(train_images), config, peak)
        if accelerator.scaler:  # one accelerator serves all cells: none may start with the scale of the last
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        mixing = Mixing(len(data.classes), mixup=config.mixup, cutmix=config.cutmix)
        return cls(
            config, seed, accelerator, net, model, ema, optimizer, schedule, mixing, train_images, val_images
        )

    @property
    def averaged(self) -> nn.Module | None:
        return self.ema.module if self.ema else None

    def run_epoch(self) -> tuple[Evaluation, Evaluation | None]:
        """Do the rest of the epoch, validate, save; return the scores of the model and of its average."""
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
        self.watchers.epoch({"epoch": position.epoch + 1, **row, **_score_row(*scores), "seconds": seconds})
        if scores[0].accuracy > position.best_accuracy:
            self.position.best_epoch, self.position.best_accuracy = self.position.epoch, scores[0].accuracy
            self.watchers.best(self.model, scores[0])
        self.save()
        if self.stop.agreed(self.accelerator, 0) and self.position.epoch < self.config.epochs:
            raise self._preempted()
        return scores

    def _train_epoch(self) -> dict[str, float]:
        self.net.train()
        at = self.position
        self.train_images.batch_sampler.set_position(at.epoch, at.step)  # type: ignore[union-attr]
        steps = len(self.train_images)
        device, cpu = self.accelerator.device, self.accelerator.device.type == "cpu"
        between = 1 if cpu else _STEPS_BETWEEN_LOOKS  # a look waits for the device
        pending: list[tuple[Tensor, Tensor, int]] = []
        waited, value = 0.0, math.nan
        mark = time.perf_counter()
        for step, (images, labels) in enumerate(self.train_images, start=at.step):
            waited += time.perf_counter() - mark
            images = images.to(device, non_blocking=True, memory_format=_LAYOUT)
            labels = labels.to(device, non_blocking=True)
            pending.append((*self._backward(images, labels, step), len(labels)))
            if len(pending) == between or step + 1 == steps:
                value = self._count(pending, images, f"epoch {at.epoch + 1}, step {step + 1} of {steps}")
            self._update(at.epoch * steps + step)
            at.step = step + 1
            self.watchers.step(at.epoch, step, steps, value)
            now = time.perf_counter()
            at.epoch_seconds, at.seconds = at.epoch_seconds + now - mark, at.seconds + now - mark
            mark = now
            if at.step < steps and self._is_time_to_save(at.step):
                self._count(pending, images, f"epoch {at.epoch + 1}, step {step + 1} of {steps}")
                self.save()
                if self.stop.agreed(self.accelerator, 0):
                    raise self._preempted()
                mark = time.perf_counter()
        loss_all, hits_all, seen_all = self._over_processes(at.loss_sum, at.hits, at.seen)
        return {
            "train_loss": loss_all / seen_all,
            "train_accuracy": hits_all / seen_all,
            "lr": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            "images_per_s": seen_all / at.epoch_seconds,
            "data_wait_s": waited,
        }

    def _backward(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Add up the gradients of one batch; return its mean loss and its number of hits, on the device."""
        place = (self.position.epoch, step, self.accelerator.process_index)
        images, targets = self.mixing(images, labels, seed=derive_seed(self.seed, "mixing", *place))
        # Dropout too is a function of (seed, epoch, step, process): no generator's state needs to be saved.
        seed_everything(derive_seed(self.seed, "step", *place))
        count = self.config.accumulate
        parts = list(zip(images.chunk(count), targets.chunk(count), labels.chunk(count), strict=True))
        losses, hits = [], []
        for i, (x, y, truth) in enumerate(parts, start=1):
            with self._syncing(last=i == len(parts)):
                with self.accelerator.autocast():
                    logits = self.net(x).float()  # (N, classes)
                loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
                loss = loss * (len(x) / len(images))
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(1) == truth).sum())
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _syncing(self, *, last: bool) -> AbstractContextManager[Any]:
        """Let the processes add up their gradients in the backward pass of the last part only."""
        if self.config.shard:
            set_sync(self.net, last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.net)

    def _count(self, pending: list[tuple[Tensor, Tensor, int]], images: Tensor, where: str) -> float:
        """Add what the last steps counted to the epoch's sums; return the last loss."""
        if not pending:
            return math.nan
        losses, hits, sizes = zip(*pending, strict=True)
        pending.clear()
        values = torch.stack(losses).tolist()
        for value, size in zip(values, sizes, strict=True):
            if not math.isfinite(value):
                raise self._nonfinite(images, f"the loss is {value} in {where}")
            self.position.loss_sum += value * size
        self.position.hits += int(torch.stack(hits).sum())
        self.position.seen += sum(sizes)
        return values[-1]

    def _update(self, updates: int) -> None:
        self.schedule.step_update(updates)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, step=updates + 1)

    def _is_time_to_save(self, step: int) -> bool:
        wanted = self.save_every is not None and step % self.save_every == 0
        return self.stop.agreed(self.accelerator, step) or wanted

    def _preempted(self) -> Preempted:
        done = f"{self.position.epoch} of {self.config.epochs} epochs"
        after = f" and {self.position.step} steps" if self.position.step else ""
        return Preempted(
            f"stopped by {self.stop.reason or 'another process'} after {done}{after}; all is saved"
        )

    def validate(self) -> tuple[Evaluation, Evaluation | None]:
        if self.ema and self.accelerator.num_processes > 1:
            # Each process averaged the batch norm statistics of its own images; process 0's are saved, so judge those.
            for buffer in self.ema.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        plain = evaluate(self.model, self.val_images, self.accelerator)
        if not math.isfinite(plain.loss):
            raise self._nonfinite(self._first_nonfinite_batch(), f"the validation loss is {plain.loss}")
        return plain, evaluate(self.ema.module, self.val_images, self.accelerator) if self.ema else None

    def _first_nonfinite_batch(self) -> Tensor:
        self.net.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for images, _ in self.val_images:
                if not torch.isfinite(self.model(images.to(self.accelerator.device))).all():
                    break
        return images.to(self.accelerator.device)

    def save(self) -> None:
        files = as_files(self._shared(), self.model, self.optimizer, self.averaged, self.accelerator.scaler)
        if self.accelerator.is_main_process:
            at = self.position
            self.checkpoints.write(at.epoch * len(self.train_images) + at.step, files)
        self.accelerator.wait_for_everyone()

    def _shared(self) -> Position:
        """Return the position with the sums of all processes; on going on, only the first process keeps them."""
        at = self.position
        loss_sum, hits, seen = self._over_processes(at.loss_sum, at.hits, at.seen)
        return Position(**{**vars(at), "loss_sum": loss_sum, "hits": int(hits), "seen": int(seen)})

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


def _score_row(plain: Evaluation, ema: Evaluation | None) -> dict[str, float]:
    row = {"val_loss": plain.loss, "val_accuracy": plain.accuracy, "val_top5": plain.top5_accuracy}
    return {**row, "val_accuracy_ema": ema.accuracy} if ema else row
