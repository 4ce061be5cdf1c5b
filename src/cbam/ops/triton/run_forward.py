"""The launches of a forward call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cbam.ops.signature import ForwardArguments, Weights
from cbam.ops.triton import forward_kernels as kernels
from cbam.ops.triton import forward_passes as passes
from cbam.ops.triton.blocks import Tile, across, parts, tile
from cbam.ops.triton.launch import launch, launch_pass, tuned
from cbam.ops.triton.problem import Affine, Problem, affine_of, new_vectors, problem_of

FEW = 4
"""Up to so many samples, each program of the MLP has one of them."""
# Samples of a program of the MLP, and what it sums at a time; shares of the pooling at a time.
MANY_HIDDEN = {"BN": 16, "BH": 8, "BC": 64, "BS": 2}
ONE_HIDDEN = {"BN": 1, "BH": 1, "BC": 256, "BS": 16}
MANY_GATES = {"BN": 16, "BC": 32, "BH": 16}
ONE_GATE = {"BN": 1, "BC": 16, "BH": 128}


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `cbam::forward`."""
    x, weights, given, residual, config, keep = ForwardArguments.parse(arguments)
    before = affine_of(given, config)
    problem = problem_of(x, weights, config)
    y = torch.empty_like(x)
    saved, argmax = new_vectors(x, problem, keep)
    stats = saved.new_empty(2 if problem.norm_training else 0)
    if x.numel():
        s, pooled, hidden, t, maps, z, z_stats = problem.split(saved)
        channel_argmax, position_argmax = problem.split_argmax(argmax) if keep else (None, None)
        if problem.hidden:
            _channel_gate(x, weights, before, problem, s, pooled, hidden, position_argmax)
        if problem.k:
            _squeeze(x, before, problem, s, maps, channel_argmax)
        if problem.norm_training:
            _statistics(weights, problem, maps, z, z_stats, stats)
        _apply(x, weights, before, residual, config.relu, problem, s, maps, z, z_stats, t, y)
    return y, saved if keep else saved.new_empty(0), argmax, stats


def _channel_gate(
    x: Tensor, weights: Weights, before: Affine, q: Problem, s: Any, pooled: Any, hidden: Any, argmax: Any
) -> None:
    n, c, p = q.samples, q.channels, q.positions
    average, maximum = int(q.average_row >= 0), int(q.maximum_row >= 0)

    def pool(size: Tile) -> tuple[Tensor, Any, int]:
        blocks = -(-c // size.channels)
        splits, per_split = parts(p, size.positions, n * blocks, x.device)
        partial = s.new_empty(2, n * splits * c)
        firsts = None if argmax is None else argmax.new_empty(n * splits * c)
        launch_pass(
            passes.pool, (n * splits, blocks), size, x, *before, *partial, firsts, c, p, splits, per_split,
            AVERAGE=average, MAXIMUM=maximum, LAST=q.channels_last, WHOLE=c % size.channels == 0,
        )  # fmt: skip
        return partial, firsts, splits

    usual = tile(2048, 32 if q.channels_last else 16, c, p, q.channels_last, 4)
    partial, firsts, splits = tuned(pool, usual, "pool", q, x.dtype, before.mean is None, argmax is None)
    few = n <= FEW
    sizes = ONE_HIDDEN if few else MANY_HIDDEN
    launch(
        kernels.hidden, (-(-n // sizes["BN"]), -(-q.hidden // sizes["BH"])), *partial, firsts, weights.w0, weights.b0,
        pooled, argmax, hidden, n, c, p, q.hidden, splits, AVERAGE=average, MAXIMUM=maximum, **sizes,
    )  # fmt: skip
    sizes = ONE_GATE if few else MANY_GATES
    launch(
        kernels.channel_gate, (-(-n // sizes["BN"]), -(-c // sizes["BC"])), hidden, weights.w1, weights.b1,
        weights.channel_scale, s, n, c, q.hidden, ROWS=q.rows, HARD=q.hard, **sizes,
    )  # fmt: skip


def _squeeze(x: Tensor, before: Affine, q: Problem, s: Any, maps: Any, argmax: Any) -> None:
    n, c, p = q.samples, q.channels, q.positions

    def squeeze(size: Tile) -> None:
        tiles = -(-p // size.positions)
        group = (
            min(16 // x.element_size(), size.channels) if q.channels_last else 1
        )  # channels of a thread's read
        launch_pass(
            passes.squeeze, (n * tiles,), size, x, *before, s, maps, argmax, n, c, p, tiles,
            AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, LAST=q.channels_last, GROUP=group,
        )  # fmt: skip

    usual = across(n, c, p, q.channels_last, x.element_size(), x.device, longest=64)
    tuned(squeeze, usual, "squeeze", q, x.dtype, before.mean is None, argmax is None)


def _statistics(weights: Weights, q: Problem, maps: Any, z: Any, z_stats: Any, stats: Tensor) -> None:
    size = 128
    tiles = -(-q.positions // size)
    partial = stats.new_empty(q.samples * tiles * 3)
    launch(
        kernels.logits, (q.samples * tiles,), maps, weights.kernel, z, partial, q.positions, q.height, q.width, tiles,
        K=q.k, PLANES=q.planes, BP=size,
    )  # fmt: skip
    launch(kernels.statistics, (1,), partial, z_stats, stats, q.samples * tiles, q.eps, BLOCK=1024)


def _apply(
    x: Tensor, weights: Weights, before: Affine, residual: Any, relu: bool, q: Problem,
    s: Any, maps: Any, z: Any, z_stats: Any, t: Any, y: Tensor,
) -> None:  # fmt: skip
    n, c, p, w = q.samples, q.channels, q.positions, weights

    def apply(size: Tile) -> None:
        # One position a thread for the convolution; the tiles are parts of those positions.
        gates = size.positions if not q.channels_last else max(size.positions, 32 * size.warps)
        tiles = -(-p // gates)
        count, per_program = parts(c, size.channels, n * tiles, x.device)
        launch_pass(
            passes.apply, (n * tiles, count), size, x, *before, s, maps, w.kernel, z, z_stats,
            w.norm_weight, w.norm_bias, w.norm_mean, w.norm_var, w.spatial_scale, t, residual, y,
            c, p, q.height, q.width, tiles, per_program, q.eps,
            K=q.k, PLANES=q.planes, HARD=q.hard, RELU=relu, LAST=q.channels_last,
            WHOLE=c % size.channels == 0, BG=gates,
        )  # fmt: skip

    usual = tile(2048, 16, c, p, q.channels_last, 2 if q.channels_last else 4)
    tuned(apply, usual, "apply", q, x.dtype, before.mean is None, residual is None)
