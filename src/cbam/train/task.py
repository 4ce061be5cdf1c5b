"""What the loop leaves to the kind of training: its batches, its loss, and how a network is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cbam.train.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

R = TypeVar("R", bound=Recipe)
Scores = TypeVar("Scores")

# 1.7 times as fast for small ResNets on a CPU, and what tensor cores want.
LAYOUT = torch.channels_last


@dataclass(frozen=True)
class Batch:
    """Some images with what is known of them, or a part of a batch.

    Attributes:
        images: (N, C, H, W), or N images (C, H, W) of any size.
        targets: What the loss compares with; its form is the task's.
        truth: What predictions are counted against, where that is not the targets.
    """

    images: Any
    targets: Any
    truth: Any = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Task(ABC, Generic[R, Scores]):
    """A kind of training.

    Attributes:
        recipe: How to train.
    """

    recipe: R

    @abstractmethod
    def loaders(self, seed: int, rank: int, world: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders of the training and of the validation images of one process.

        The first has a `batch_sampler` with `set_position(epoch, step)`.

        Args:
            seed: Of the order and of the augmentation.
            rank: Of this process.
            world: Number of processes.

        Raises:
            CBAMError: The images are too few.
        """

    @abstractmethod
    def to_device(self, loaded: Any, device: torch.device) -> Batch:
        """Return what a loader gave as a batch on the device."""

    @abstractmethod
    def parts(self, batch: Batch, seed: int) -> list[Batch]:
        """Return the parts of a batch, as many as the recipe's `accumulate`.

        Args:
            batch: Of this process.
            seed: Of what is random about the batch as a whole, such as mixup.
        """

    @abstractmethod
    def loss(self, net: nn.Module, part: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a part, and how many of its images are predicted correctly (0 if not counted).

        Args:
            net: As accelerate wrapped it, in training mode.
            part: Of a batch.
        """

    @abstractmethod
    def network_inputs(self, batch: Batch, *, training: bool) -> tuple[Any, ...]:
        """Return the arguments with which a network is called."""

    @abstractmethod
    def evaluate(self, model: nn.Module, images: DataLoader[Any], accelerator: Accelerator) -> Scores:
        """Judge a network on all images of the loader, those of the other processes included, each once."""

    @abstractmethod
    def score(self, scores: Scores) -> float:
        """Return the number, 0..1, by which the best epoch is chosen."""

    @abstractmethod
    def row(self, scores: Scores, averaged: Scores | None) -> dict[str, float]:
        """Return the scores of a network and of its moving average for a row of the metrics."""

    def training_row(self, correct: float, seen: float) -> dict[str, float]:
        """Return what the metrics say of the training images beside the loss."""
        return {}

    def problem(self, scores: Scores) -> str:
        """Say what is not finite in the scores; empty if nothing."""
        return ""
