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
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cbam.train.mixing import Mixing
from cbam.train.parameters import parameter_groups
from cbam.train.schedule import make_schedule
from cbam.train.seeding import derive_seed, seed_everything
from cbam.train.sharding import set_sync, shard

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cbam.train.config import TrainConfig

# 1.7 times as fast for small ResNets on a CPU, and what tensor cores want.
LAYOUT = torch.channels_last


class TrainStep:
    """A network with its optimizer, schedule and moving average, on its device.

    Args:
        model: A classifier, (N, C, H, W) -> (N, classes); moved to the device in place.
        classes: Their number.
        steps: In an epoch.
        config: The recipe.
        seed: Decides mixup and dropout.
        fine_tuning: The weights come from an earlier training: a lower default learning rate.
        accelerator: Of `make_accelerator`.

    Attributes:
        model: The network itself.
        net: The network as accelerate wrapped it; gradients are computed through this.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        steps: int,
        config: TrainConfig,
        seed: int,
        fine_tuning: bool,
        accelerator: Accelerator,
    ):
        self.config, self.seed, self.accelerator, self.model = config, seed, accelerator, model
        world = accelerator.num_processes
        if config.sync_bn and world > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(accelerator.device)
        if config.shard:
            shard(model, accelerator.device.type, world)
        else:  # FSDP2 takes contiguous weights only
            model.to(memory_format=LAYOUT)
        peak = config.peak_lr(fine_tuning=fine_tuning)
        optimizer = create_optimizer_v2(parameter_groups(model, config), opt=config.optimizer, lr=peak)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.net = model if config.shard else accelerator.prepare(model)
        self.optimizer: Any = accelerator.prepare(optimizer)
        self.schedule = make_schedule(self.optimizer, steps, config, peak)
        self.mixing = Mixing(classes, mixup=config.mixup, cutmix=config.cutmix)
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

    def backward(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Add up the gradients of this process's share of a batch.

        Args:
            images: (N, C, H, W), on the device.
            labels: (N,).
            epoch: Counted from 0, as is `step`.
            step: Of the epoch.

        Returns:
            The mean loss and the number of correct predictions, both on the device.
        """
        use = (epoch, step, self.accelerator.process_index)
        images, targets = self.mixing(images, labels, seed=derive_seed(self.seed, "mixing", *use))
        # Dropout too is a function of (seed, epoch, step, process): no generator's state needs to be saved.
        seed_everything(derive_seed(self.seed, "step", *use))
        count = self.config.accumulate
        parts = list(zip(images.chunk(count), targets.chunk(count), labels.chunk(count), strict=True))
        losses, correct = [], []
        for i, (x, y, truth) in enumerate(parts, start=1):
            with self._syncing(last=i == len(parts)):
                with self.accelerator.autocast():
                    logits = self.net(x).float()  # (N, classes)
                loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
                loss = loss * (len(x) / len(images))
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            correct.append((logits.detach().argmax(1) == truth).sum())
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def update(self, updates: int) -> None:
        """Update the weights and their average; `updates` counts the earlier updates."""
        self.schedule.step_update(updates)
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
        if not self.config.shard:
            self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _syncing(self, *, last: bool) -> AbstractContextManager[Any]:
        """Sum gradients over the processes only in the backward pass of the last part."""
        if self.config.shard:
            set_sync(self.net, last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.net)
