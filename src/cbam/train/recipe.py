"""The options that every training has, and what the loop reads of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from cbam.errors import unknown_name
from cbam.runs.config import option
from cbam.runs.options import check_ranges

OPTIMIZERS = ("sgd", "momentum", "adamw")
SCHEDULES = ("cosine", "step")


@dataclass(frozen=True)
class Plan:
    """The learning rate over a whole training, counted in steps.

    Attributes:
        steps: Of the whole training.
        warmup: Steps in which the rate rises, in a line, to its peak.
        cosine: Whether it then falls to zero along a cosine; else in steps.
        every: Steps between two divisions of the rate by 10; 0 for none.
        drops: Steps at which the rate is divided by 10.
    """

    steps: int
    warmup: int
    cosine: bool
    every: int = 0
    drops: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a network is trained, whatever it does.

    Each field is an option of the commands that train; the text below it is the option's help.
    """

    epochs: int = 10
    """Passes over the training images, for each model."""
    batch_size: int = 128
    """Images per step, over all processes together."""
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    """sgd has Nesterov momentum 0.9; momentum is SGD with plain momentum 0.9, as in the authors' code."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float = 5e-4
    """Weight decay, on all weights but biases and norms."""
    decay_norms: bool = False
    """Weight decay on biases and norms too, as in the authors' code."""
    gate_lr_scale: float = 1.0
    """Factor on the learning rate of the attention's own weights; see docs/adding-attention.md."""
    gate_weight_decay: float | None = None
    """Weight decay of the attention's own weights. None: as for all others."""
    ema: float = 0.0
    """Decay of a moving average of the weights, e.g. 0.999, reported next to the plain score; 0 is off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast: bf16 on most devices, fp16 (with gradient scaling) on GPUs only, no = float32."""
    # A step on another device sees the same images and computes the same gradient up to rounding, so a training may
    # resume with another choice.
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", affects_result=False)
    """Where to train; auto is the accelerator if there is one."""
    # Batch norm sees one part at a time: a training may resume with another value, as with another number of
    # processes, but networks that are compared must share it.
    accumulate: int = option(1, affects_result=False, affects_comparison=True)
    """Parts in which a process computes its share of a batch, to save memory; batch norm sees one part at a time."""
    sync_bn: bool = False
    """Batch norm over the images of all processes (on GPUs)."""
    workers: int = option(0, affects_result=False)
    """Processes that load images; the result does not depend on it. Folders of photographs gain from a few."""

    def __post_init__(self) -> None:
        check_ranges(
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("batch-size", self.batch_size, self.has_batch_size, "at least 1"),
            ("lr", self.lr, self.lr is None or 0 < self.lr < float("inf"), "above 0"),
            (
                "accumulate",
                self.accumulate,
                self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
                f"at least 1 and divide --batch-size {self.batch_size}",
            ),
            ("weight-decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "at least 0"),
            ("gate-lr-scale", self.gate_lr_scale, 0 < self.gate_lr_scale < float("inf"), "above 0"),
            (
                "gate-weight-decay",
                self.gate_weight_decay,
                self.gate_weight_decay is None or 0 <= self.gate_weight_decay < float("inf"),
                "at least 0",
            ),
            ("ema", self.ema, 0 <= self.ema < 1, "from 0 (off) to below 1, e.g. 0.999"),
            ("workers", self.workers, self.workers >= 0, "at least 0"),
        )
        for name, choice, choices in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--precision", self.precision, ("no", "bf16", "fp16")),
            ("--device", self.device, ("auto", "cpu", "cuda", "mps")),
        ):
            if choice not in choices:
                raise unknown_name(name, choice, choices)

    @abstractmethod
    def plan(self, steps: int) -> Plan:
        """Return the learning rate's plan.

        Args:
            steps: Of an epoch.
        """

    @property
    def has_batch_size(self) -> bool:
        """Whether the batch size is one that can be trained with."""
        return self.batch_size >= 1

    @property
    def sharded(self) -> bool:
        """Whether the network is divided over the processes (FSDP2)."""
        return False

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return False

    @property
    def frozen_epochs(self) -> int:
        """First epochs in which only classifier and attention learn."""
        return 0

    @property
    def largest_gradient(self) -> float:
        """Norm that the gradient of all weights is scaled down to; 0 for none."""
        return 0.0

    @property
    def epochs_between_evaluations(self) -> int:
        """After how many epochs the network is judged; after the last one it always is."""
        return 1
