"""Run the forward kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cbam.ops.plain import NormBefore, Settings, Weights
from cbam.ops.triton import forward_kernels as kernels
from cbam.ops.triton.blocks import Tile, parts, tile
from cbam.ops.triton.launch import launch, sweep, tuned
from cbam.ops.triton.problem import Problem, new_vectors, problem_of

# Samples and hidden units or channels of a program of the MLP, what it sums at a time, and shares of the pooling.
FEW = 4
"""Up to so many samples, a program of the MLP has one of them."""

def forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what `torch.ops.cbam.forward` computes; its arguments in its order."""
    weights, before, residual = Weights(*arguments[:11]), NormBefore(*arguments[11:15]), arguments[15]
    settings, keep = Settings(*arguments[16:22]), arguments[22]
    problem = problem_of(x, weights, settings)
    y = torch.empty_like(x)
    saved, where = new_vectors(x, problem, keep)
    stats = saved.new_empty(2 if problem.norm_training else 0)
    if x.numel():
        s, pooled, hidden, t, maps, z, z_stats = problem.split(saved)
        channel_at, position_at = problem.split_places(where) if keep else (None, None)
        if problem.hidden:
            _channel_gate(x, weights, before, problem, s, pooled, hidden, position_at)
        if problem.k:
            _squeeze(x, before, problem, s, maps, channel_at)
        if problem.norm_training:
            _statistics(weights, problem, maps, z, z_stats, stats)
        _apply(x, weights, before, residual, settings.relu, problem, s, maps, z, z_stats, t, y)
    return y, saved if keep else saved.new_empty(0), where, stats


def _channel_gate(
    x: Tensor, weights: Weights, before: NormBefore, q: Problem, s: Any, pooled: Any, hidden: Any, where: Any
) -> None:
    n, c, p = q.samples, q.channels, q.positions
    average, maximum = int(q.average_row >= 0), int(q.maximum_row >= 0)

    def pool(size: Tile) -> tuple[Tensor, Any, int]:
        blocks = -(-c // size.channels)
        splits, per_split = parts(p, size.positions, n * blocks, x.device)
        shares = s.new_empty(2, n * splits * c)
        firsts = None if where is None else where.new_empty(n * splits * c)
        sweep(
            kernels.pool, (n * splits, blocks), size, x, *before, shares[0], shares[1], firsts, c, p, splits, per_split,
            AVERAGE=average, MAXIMUM=maximum, LAST=q.channels_last,
        )  # fmt: skip
        return shares, firsts, splits

    usual = tile(2048, 16, c, p, q.channels_last, 4)
    shares, firsts, splits = tuned(pool, usual, "pool", q, x.dtype, before.mean is None, where is None)
    groups = -(-n // DENSE["BN"])
    launch(
        kernels.hidden, (groups, -(-q.hidden // DENSE["BH"])), shares[0], shares[1], firsts, weights.w0, weights.b0,
        pooled, where, hidden, n, c, p, q.hidden, splits, AVERAGE=average, MAXIMUM=maximum, **DENSE,
    )  # fmt: skip
    launch(
        kernels.channel_gate, (groups, -(-c // DENSE["BC"])), hidden, weights.w1, weights.b1, weights.channel_scale,
        s, n, c, q.hidden, ROWS=q.rows, HARD=q.hard, **DENSE,
    )  # fmt: skip


def _squeeze(x: Tensor, before: NormBefore, q: Problem, s: Any, maps: Any, where: Any) -> None:
    n, c, p = q.samples, q.channels, q.positions

    def squeeze(size: Tile) -> None:
        tiles = -(-p // size.positions)
        sweep(
            kernels.squeeze, (n * tiles,), size, x, *before, s, maps, where, n, c, p, tiles,
            AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, LAST=q.channels_last,
        )  # fmt: skip

    usual = tile(2048, 8, c, p, q.channels_last, 4)
    tuned(squeeze, usual, "squeeze", q, x.dtype, before.mean is None, where is None)


def _statistics(weights: Weights, q: Problem, maps: Any, z: Any, z_stats: Any, stats: Tensor) -> None:
    size = 128
    tiles = -(-q.positions // size)
    shares = stats.new_empty(q.samples * tiles * 3)
    launch(
        kernels.logits, (q.samples * tiles,), maps, weights.kernel, z, shares, q.positions, q.height, q.width, tiles,
        K=q.k, PLANES=q.planes, TAPS=TAPS, BP=size,
    )  # fmt: skip
    launch(kernels.statistics, (1,), shares, z_stats, stats, q.samples * tiles, q.eps, BLOCK=1024)


def _apply(
    x: Tensor, weights: Weights, before: NormBefore, residual: Any, relu: bool, q: Problem,
    s: Any, maps: Any, z: Any, z_stats: Any, t: Any, y: Tensor,
) -> None:  # fmt: skip
    n, c, p, w = q.samples, q.channels, q.positions, weights

    def apply(size: Tile) -> None:
        tiles = -(-p // size.positions)
        shares, per_program = parts(c, size.channels, n * tiles, x.device)
        sweep(
            kernels.apply, (n * tiles, shares), size, x, *before, s, maps, w.kernel, z, z_stats,
            w.norm_weight, w.norm_bias, w.norm_mean, w.norm_var, w.spatial_scale, t, residual, y,
            c, p, q.height, q.width, tiles, per_program, q.eps,
            K=q.k, PLANES=q.planes, HARD=q.hard, RELU=relu, LAST=q.channels_last, TAPS=TAPS,
        )  # fmt: skip

    usual = tile(4096, 64, c, p, q.channels_last, 4)
    tuned(apply, usual, "apply", q, x.dtype, before.mean is None, residual is None)
