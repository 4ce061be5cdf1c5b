"""A call in numbers, and the layout of the vectors that it keeps for backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from torch import Tensor

from cbam.ops.signature import ACTIVATIONS, DESCRIPTOR_PLANES, POOLED_ROWS, OperatorConfig, Weights
from cbam.ops.triton.plan import Part, Room


@dataclass(frozen=True)
class Problem:
    """Shapes and options of a call.

    Args:
        samples, channels, height, width: of the map.
        channels_last: its memory format.
        hidden: width of the MLP, 0 without a channel gate.
        pooling, descriptor: as in the operator's signature, 0 without their gate.
        k: side of the spatial kernel, 0 without a spatial gate.
        inner: whether that kernel is in channels_last, so that its planes are the inner axis.
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
    inner: bool
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

    def kept(self, numbers: Room, indices: Room | None) -> Kept:
        """Return the parts of what is kept, None for those that this call does not have or does not use."""
        s, pooled, hidden, t, maps, z, z_stats = (numbers.part(n) if n else None for n in self.sizes)
        channels = positions = None
        if indices is not None:
            channels, positions = map(indices.part, self.argmax_sizes)
        if not self.k or self.maximum_plane < 0:
            channels = None
        if not self.hidden or self.maximum_row < 0:
            positions = None
        return Kept(s, pooled, hidden, t, maps, z, z_stats, channels, positions)


class Kept(NamedTuple):
    """The vectors of numbers and indices that backward needs.

    Args:
        s, t: the gates, (N, C) and (N, P).
        pooled, hidden: the pooled values and the hidden layer of the MLP, (N, rows, C) and (N, rows, h).
        maps: what the spatial convolution reads, (N, planes, P).
        z, z_stats: the convolution's output before a norm of batch statistics, and these: mean, 1 / deviation.
        channel_argmax: the channel of each position's maximum.
        position_argmax: the position of each channel's maximum.
    """

    s: Part | None
    pooled: Part | None
    hidden: Part | None
    t: Part | None
    maps: Part | None
    z: Part | None
    z_stats: Part | None
    channel_argmax: Part | None
    position_argmax: Part | None


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
        kernel is not None and not kernel.is_contiguous(),
        config.norm_training or weights.norm_mean is not None,
        config,
    )


@lru_cache(4096)  # detectors see maps of many sizes
def _problem(
    shape: tuple[int, ...],
    channels_last: bool,
    hidden: int,
    k: int,
    inner: bool,
    norm: bool,
    config: OperatorConfig,
) -> Problem:
    n, c, height, width = shape
    return Problem(
        n, c, height, width, channels_last, hidden, config.pooling if hidden else 0, config.descriptor if k else 0, k,
        inner, config.activation == ACTIVATIONS["hardsigmoid"], norm and k > 0, config.norm_training and k > 0,
        config.norm_eps,
    )  # fmt: skip


def _index(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else -1
