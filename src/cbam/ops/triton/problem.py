"""A call in numbers, and the layout of the vectors that it keeps for backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import ACTIVATIONS, DESCRIPTOR_PLANES, POOLED_ROWS, NormBefore, OperatorConfig, Weights


@dataclass(frozen=True)
class Problem:
    """Shapes and options of a call.

    Args:
        samples, channels, height, width: of the map.
        channels_last: its memory format.
        hidden: width of the MLP, 0 without a channel gate.
        pooling, descriptor: as in the operator's signature, 0 without their gate.
        k: side of the spatial kernel, 0 without a spatial gate.
        hard: whether the gates are hard sigmoids.
        norm: whether the spatial gate has a norm.
        norm_training: whether that norm uses the statistics of the batch.
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
        """Pooled values of a channel: 0, 1 or 2."""
        return len(POOLED_ROWS[self.pooling])

    @cached_property
    def average_row(self) -> int:
        """Which row of the pooled values is the average; -1 for none."""
        return _index("avg", POOLED_ROWS[self.pooling])

    @cached_property
    def maximum_row(self) -> int:
        """Which row of the pooled values is the maximum; -1 for none."""
        return _index("max", POOLED_ROWS[self.pooling])

    @cached_property
    def planes(self) -> int:
        """Maps that the spatial convolution reads: 0, 1 or 2."""
        return len(DESCRIPTOR_PLANES[self.descriptor])

    @cached_property
    def average_plane(self) -> int:
        """Which of the maps is the average; -1 for none."""
        return _index("avg", DESCRIPTOR_PLANES[self.descriptor])

    @cached_property
    def maximum_plane(self) -> int:
        """Which of the maps is the maximum; -1 for none."""
        return _index("max", DESCRIPTOR_PLANES[self.descriptor])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers kept for backward: s, pooled, hidden, t, maps, logits, their statistics."""
        n, p = self.samples, self.positions
        channel, spatial = n * self.channels * (self.hidden > 0), n * p * (self.k > 0)
        training = self.norm_training and self.k > 0
        return (
            channel, 2 * channel, 2 * n * self.hidden, spatial, 2 * spatial, spatial * training, 2 * training,
        )  # fmt: skip

    @cached_property
    def argmax_sizes(self) -> tuple[int, int]:
        """Indices kept for backward: the channel of each position's maximum, the position of each channel's."""
        return self.samples * self.positions * (self.k > 0), self.samples * self.channels * (self.hidden > 0)

    def split(self, saved: Tensor) -> list[Tensor | None]:
        """Return the parts of `saved`, None for the empty ones."""
        return [part if part.numel() else None for part in saved.split_with_sizes(self.sizes)]

    def split_argmax(self, argmax: Tensor) -> list[Tensor | None]:
        """Return the channels and the positions in `argmax`; None where the maximum is not used."""
        channels, positions = argmax.split_with_sizes(self.argmax_sizes)
        return [
            channels if self.maximum_plane >= 0 and channels.numel() else None,
            positions if self.maximum_row >= 0 and positions.numel() else None,
        ]


def problem_of(x: Tensor, weights: Weights, config: OperatorConfig) -> Problem:
    """Return the call in numbers.

    Args:
        x: dense map (N, C, H, W).
        weights: the gates' tensors.
        config: the operator's numbers.
    """
    kernel, w0 = weights.kernel, weights.w0
    return _problem(
        tuple(x.shape),
        # A map of one position is a row of channels either way, and long rows are the fast ones.
        not x.is_contiguous() or x.shape[2] * x.shape[3] == 1,
        0 if w0 is None else w0.numel() // x.shape[1],
        0 if kernel is None else kernel.shape[-1],
        config.norm_training or weights.norm_mean is not None,
        config,
    )


class Affine(NamedTuple):
    """The norm in front as the kernels read it: mean and 1 / standard deviation of each channel."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    invstd: Tensor | None


def affine_of(before: NormBefore, config: OperatorConfig) -> Affine:
    """Return the norm in front with 1 / sqrt(var + eps), in the type in which torch takes it."""
    weight, bias, mean, var = before
    if var is None:
        return Affine(weight, bias, mean, None)
    if config.pre_training:
        return Affine(weight, bias, mean, (var.double() + config.pre_eps).sqrt_().reciprocal_().to(var.dtype))
    return Affine(weight, bias, mean, (var + config.pre_eps).rsqrt_())


@lru_cache(4096)  # detectors see maps of many sizes
def _problem(
    shape: tuple[int, ...], channels_last: bool, hidden: int, k: int, norm: bool, config: OperatorConfig
) -> Problem:
    n, c, height, width = shape
    return Problem(
        n, c, height, width, channels_last, hidden, config.pooling if hidden else 0, config.descriptor if k else 0, k,
        config.activation == ACTIVATIONS["hardsigmoid"], norm and k > 0, config.norm_training and k > 0,
        config.norm_eps,
    )  # fmt: skip


def _index(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else -1


def new_vectors(x: Tensor, problem: Problem, keep: bool) -> tuple[Tensor, Tensor]:
    """Return room for the numbers and the indices; no indices if nothing is kept for backward."""
    saved = x.new_empty(sum(problem.sizes), dtype=accumulation_dtype(x.dtype))
    return saved, x.new_empty(sum(problem.argmax_sizes) if keep else 0, dtype=torch.int32)
