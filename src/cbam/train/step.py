"""One step of training: the gradient of a batch, and the update.

accelerate chooses the device, joins processes (`accelerate launch`, torchrun), wraps the network for them (DDP) or
compiles it, casts (autocast) and scales the gradients of float16. It does nothing else: `cbam.data.batches` divides
images over processes, since a run must resume with any number of them, and `--shard` calls torch's FSDP2 (`sharding`),
which accelerate offers on GPUs only. All calls of accelerate that a step needs are in this file; timm provides
optimizer, schedule and moving average.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cbam.train.freezing import Backbone
from cbam.train.parameters import parameter_groups
from cbam.train.schedule import make_schedule
from cbam.train.seeding import derive_seed, seed_everything
from cbam.train.sharding import set_sync, shard
from cbam.train.task import LAYOUT, Batch, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cbam.train.recipe import Plan


class TrainStep:
    """A network with its optimizer, schedule and moving average, on its device.

    Args:
        model: Moved to the device in place.
        task: Computes the loss; its recipe counts.
        plan: Of the learning rate.
        peak: The rate after the warm-up.
        seed: Decides mixup and dropout.
        accelerator: Of `make_accelerator`.

    Attributes:
        model: The network itself.
        net: The network as accelerate wrapped it; gradients are computed through this.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Any, Any],
        plan: Plan,
        peak: float,
        seed: int,
        accelerator: Accelerator,
    ):
        self.task, self.seed, self.accelerator, self.model = task, seed, accelerator, model
        self.config = config = task.recipe
        world = accelerator.num_processes
        if config.sync_bn and world > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self._backbone = Backbone(model) if config.frozen_epochs else None
        self._frozen: list[nn.Parameter] = []
        model.to(accelerator.device)
        if config.sharded:
            shard(model, accelerator.device.type, world)
        else:  # FSDP2 takes contiguous weights only
            model.to(memory_format=LAYOUT)
        optimizer = create_optimizer_v2(parameter_groups(model, config), opt=config.optimizer, lr=peak)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.net = model if config.sharded else accelerator.prepare(model)
        self.optimizer: Any = accelerator.prepare(optimizer)
        self.schedule = make_schedule(self.optimizer, plan, peak)
        if self.scaler:  # an accelerator serves several trainings: none may start with the scale of the last
            self.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())

    @property
    def scaler(self) -> Any:
        """The gradient scaler of float16, or None."""
        return self.accelerator.scaler

    @property
    def averaged(self) -> nn.Module | None:
        """The moving average of the weights, where there is one."""
        return self.ema.module if self.ema else None

    @property
    def lr(self) -> float:
        """The learning rate of this step, without a group's own factor."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group["lr_scale"]

    def begin(self, epoch: int) -> None:
        """Enter training mode; in the epochs in which the backbone is frozen, its batch norms do not.

        Args:
            epoch: Counted from 0.
        """
        self.net.train()
        if self._backbone is None:
            return
        weights = self._backbone.parameters(self.model)
        frozen = epoch < self.config.frozen_epochs
        if frozen:
            self._backbone.hold_statistics(self.model)
        self._frozen = weights if frozen else []
        # DDP and FSDP2 expect the gradients that they were made for: there they are dropped before the update.
        if self.accelerator.num_processes == 1:
            for weight in weights:
                weight.requires_grad_(not frozen)

    def backward(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Add up the gradients of this process's share of a batch.

        Args:
            batch: On the device.
            epoch: Counted from 0, as is `step`.
            step: Of the epoch.

        Returns:
            The mean loss and the number of correct predictions, both on the device.
        """
        use = (epoch, step, self.accelerator.process_index)
        parts = self.task.parts(batch, derive_seed(self.seed, "mixing", *use))
        # Dropout too is a function of (seed, epoch, step, process): no generator's state needs to be saved.
        seed_everything(derive_seed(self.seed, "step", *use))
        losses, correct = [], []
        for i, part in enumerate(parts, start=1):
            with self._syncing(last=i == len(parts)):
                with self.accelerator.autocast():
                    loss, right = self.task.loss(self.net, part)
                loss = loss * (len(part) / len(batch))
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            correct.append(right)
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def update(self, updates: int) -> None:
        """Update the weights and their average; `updates` counts the earlier updates."""
        self.schedule.step_update(updates)
        for weight in self._frozen:
            weight.grad = None
        if largest := self.config.largest_gradient:
            self.accelerator.clip_grad_norm_(self.model.parameters(), largest)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, step=updates + 1)

    def share_averaged_statistics(self) -> None:
        """Give all processes the averaged buffers of the first, which are those that are saved.

        Each process averages the batch norm statistics of its own images.
        """
        if self.ema and self.accelerator.num_processes > 1:
            for buffer in self.ema.module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def over_processes(self, *sums: float) -> list[float]:
        """Add up numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return list(sums)
        return self.accelerator.reduce(torch.tensor(sums, device=self.accelerator.device), "sum").tolist()

    def release(self) -> None:
        """Unwrap the network and release it, so that the accelerator can serve another training."""
        for weight in self._frozen:
            weight.requires_grad_(True)
        if not self.config.sharded:
            self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _syncing(self, *, last: bool) -> AbstractContextManager[Any]:
        """Sum gradients over the processes only in the backward pass of the last part."""
        if self.config.sharded:
            set_sync(self.net, last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.net)
