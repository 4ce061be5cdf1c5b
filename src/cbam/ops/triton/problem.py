"""What one call computes, in numbers, and where its intermediate results lie in the vectors kept for backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from cbam.ops.plain import Settings, Weights
from cbam.ops.reference import accumulation_dtype


@dataclass(frozen=True)
class Problem:
    """Shapes and switches of a call.

    Args:
        samples, channels, height, width: of the map.
        channels_last: its memory format.
        hidden: width of the MLP, 0 without a channel gate.
        pooling, descriptor: as in the operator's schema, 0 without their gate.
        k: side of the spatial kernel, 0 without a spatial gate.
        hard: whether the gates are hard sigmoids.
        norm: whether the spatial gate has a norm.
        norm_training: whether that takes the statistics of the batch.
        eps: of that norm.
    """

    samples: int
    channels: int
    height: int
    width: int
    channels_last: bool
    hidden: int
    pooling: int
    descriptor: int
    k: int
    hard: bool
    norm: bool
    norm_training: bool
    eps: float

    @cached_property
    def positions(self) -> int:
        """H times W."""
        return self.height * self.width

    @cached_property
    def rows(self) -> int:
        """Pooled values for a channel: 0, 1 or 2."""
        return (self.pooling & 1) + (self.pooling >> 1)

    @cached_property
    def average_row(self) -> int:
        """Which row of the pooled values is the average; -1 for none."""
        return 0 if self.pooling & 1 else -1

    @cached_property
    def maximum_row(self) -> int:
        """Which row of the pooled values is the maximum; -1 for none."""
        return self.rows - 1 if self.pooling & 2 else -1

    @cached_property
    def planes(self) -> int:
        """Maps that the spatial convolution reads: 0, 1 or 2."""
        return (0, 1, 1, 2, 2)[self.descriptor]

    @cached_property
    def average_plane(self) -> int:
        """Which of the maps is the average; -1 for none."""
        return (-1, 0, -1, 0, 1)[self.descriptor]

    @cached_property
    def maximum_plane(self) -> int:
        """Which of the maps is the maximum; -1 for none."""
        return (-1, -1, 0, 1, 0)[self.descriptor]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers kept for backward: s, pooled, hidden, t, maps, logits, their statistics."""
        n, p = self.samples, self.positions
        gated, placed = n * self.channels * (self.hidden > 0), n * p * (self.k > 0)
        training = self.norm_training and self.k > 0
        return (
            gated, 2 * gated, 2 * n * self.hidden, placed, 2 * placed, placed * training, 2 * training,
        )  # fmt: skip

    @cached_property
    def places(self) -> tuple[int, int]:
        """Indices kept for backward: the channel of each position's maximum, the position of each channel's."""
        return self.samples * self.positions * (self.k > 0), self.samples * self.channels * (self.hidden > 0)

    def split(self, saved: Tensor) -> list[Tensor | None]:
        """Return the parts of `saved`, None for those that are not there."""
        return [part if part.numel() else None for part in saved.split_with_sizes(self.sizes)]

    def split_places(self, where: Tensor) -> list[Tensor | None]:
        """Return the parts of `where`; None without a maximum to be found again."""
        channel_at, position_at = where.split_with_sizes(self.places)
        return [
            channel_at if self.maximum_plane >= 0 and channel_at.numel() else None,
            position_at if self.maximum_row >= 0 and position_at.numel() else None,
        ]


def problem_of(x: Tensor, weights: Weights, settings: Settings) -> Problem:
    """Return the call in numbers.

    Args:
        x: dense map (N, C, H, W).
        weights: the gates' tensors.
        settings: the operator's numbers.
    """
    kernel, w0 = weights.kernel, weights.w0
    return _problem(
        tuple(x.shape),
        # A map of one position is a row of channels either way, and long rows are the fast ones.
        not x.is_contiguous() or x.shape[2] * x.shape[3] == 1,
        0 if w0 is None else w0.numel() // x.shape[1],
        0 if kernel is None else kernel.shape[-1],
        settings.norm_training or weights.norm_mean is not None,
        settings,
    )


@lru_cache(4096)  # detectors see maps of many sizes
def _problem(
    shape: tuple[int, ...], channels_last: bool, hidden: int, k: int, norm: bool, settings: Settings
) -> Problem:
    pooling, descriptor, activation, norm_training, eps = settings[:5]
    n, c, height, width = shape
    return Problem(
        n, c, height, width, channels_last, hidden, pooling if hidden else 0, descriptor if k else 0, k,
        activation == 1, norm and k > 0, norm_training and k > 0, eps,
    )  # fmt: skip


def new_vectors(x: Tensor, problem: Problem, keep: bool) -> tuple[Tensor, Tensor]:
    """Return room for the numbers and for the indices; no indices if nothing is kept for backward."""
    saved = x.new_empty(sum(problem.sizes), dtype=accumulation_dtype(x.dtype))
    return saved, x.new_empty(sum(problem.places) if keep else 0, dtype=torch.int32)
