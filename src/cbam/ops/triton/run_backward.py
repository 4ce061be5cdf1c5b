"""The launches of a backward call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cbam.ops.signature import DIFFERENTIABLE, BackwardArguments, Weights
from cbam.ops.triton import backward_kernels as kernels
from cbam.ops.triton import backward_passes as passes
from cbam.ops.triton.blocks import Tile, across, multiprocessors, parts, tile
from cbam.ops.triton.convolution_kernels import convolution_grads
from cbam.ops.triton.launch import launch, launch_pass, tuned
from cbam.ops.triton.mode import INTERPRETED
from cbam.ops.triton.problem import Affine, Problem, affine_of, problem_of
from cbam.ops.triton.run_forward import FEW


class Call(NamedTuple):
    """A backward call: its numbers, its tensors, and what the forward call kept, as a whole and in parts."""

    problem: Problem
    numbers: Tensor
    weights: Weights
    before: Affine
    u: Tensor
    s: Any
    pooled: Any
    hidden: Any
    t: Any
    maps: Any
    z: Any
    z_stats: Any
    channel_argmax: Any
    position_argmax: Any

    @property
    def has_norm(self) -> bool:
        """Whether there is a norm in front."""
        return self.before.mean is not None


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute `cbam::backward`."""
    grad, x, weights, given, out, saved, argmax, config = BackwardArguments.parse(arguments)
    before = affine_of(given, config)
    q = problem_of(x, weights, config)
    call = Call(q, saved, weights, before, x, *q.split(saved), *q.split_argmax(argmax))
    dx, masked = torch.empty_like(x), None if out is None else torch.empty_like(x)
    if not q.norm:
        weights = weights._replace(norm_weight=None, norm_bias=None)
    wanted = [(*weights, *before)[i - 1] for i in DIFFERENTIABLE[1:-1]]  # without x and the residual
    new = saved.new_empty if x.numel() else saved.new_zeros
    found = [new(0 if w is None else w.numel()) for w in wanted]
    if x.numel():
        _run(call, grad, out, masked, dx, [g if g.numel() else None for g in found], config.pre_training)
    return (dx, *found, x.new_empty(0) if masked is None else masked)


def _run(
    call: Call, grad: Tensor, out: Any, masked: Any, dx: Tensor, found: list[Any], pre_training: bool
) -> None:
    q = call.problem
    dt, logits, sums, tiles = _gate_grads(call, grad, out, masked)
    spatial = _spatial_gate(call, dt, logits) if q.k else None
    dpooled = k1 = k0 = da = dhidden = input_sums = None
    if q.hidden or call.has_norm:
        da, per_sample = (
            _weighted(call, spatial, sums, tiles) if spatial else _channel_sums(call, sums, tiles)
        )
        dhidden = _hidden_grads(call, da) if q.hidden else None
        dpooled, input_sums = _pooled_grads(call, dhidden, per_sample)
        if call.has_norm and pre_training:
            k1, k0 = input_sums.new_empty(2, q.channels)
    _parameter_grads(call, da, dhidden, spatial, input_sums, found, k1, k0)
    dmaps = None if spatial is None else spatial.dmaps
    _input_grad(call, grad if masked is None else masked, dmaps, dpooled, k1, k0, dx)


def _gate_grads(call: Call, grad: Tensor, out: Any, masked: Any) -> tuple[Any, bool, Any, int]:
    """Return dt in parts, whether it is already the logits' gradient, the channels' sums, and their number."""
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions
    number = 3 if call.has_norm else 1 if q.hidden else 0

    def gate_grads(size: Tile) -> tuple[Any, bool, Any, int]:
        steps = _steps(n, p, size.positions, q.channels_last, number, grad)
        tiles = -(-p // (size.positions * steps))
        # With all channels a program knows dt, so that is worth longer loops.
        count, per_program = (1, c) if q.channels_last else parts(c, size.channels, n * tiles, grad.device)
        logits = q.k > 0 and count == 1 and not q.norm
        dt = call.numbers.new_empty(n, count, p) if q.k else None
        sums = call.numbers.new_empty(n * tiles * number * c) if number else None
        group = min(16 // grad.element_size(), size.channels) if q.channels_last else 1
        launch_pass(
            passes.gate_grads, (n * tiles, count), size, call.u, *call.before, grad, out, masked, call.s, call.t,
            call.weights.spatial_scale, dt, sums, n, c, p, tiles, per_program, SUMS=number, LOGITS=logits,
            HARD=q.hard, LAST=q.channels_last, GROUP=group, STEPS=steps,
            WHOLE=c % size.channels == 0 and p % (size.positions * steps) == 0,
        )  # fmt: skip
        return dt, logits, sums, tiles

    elements, longest = (1024, 64) if number == 3 else (2048, 256)  # three sums take as many registers
    usual = across(n, c, p, q.channels_last, grad.element_size(), grad.device, elements, longest, shortest=16)
    return tuned(gate_grads, usual, "gate_grads", q, grad.dtype, number, out is None)


def _steps(n: int, p: int, positions: int, channels_last: bool, number: int, grad: Tensor) -> int:
    """Return how many tiles a program of `gate_grads` has: several, if there are enough programs."""
    if INTERPRETED or not channels_last:
        return 2 if INTERPRETED else 1
    steps = 4
    while steps > 1 and n * -(-p // (positions * steps)) < 6 * multiprocessors(grad.device):
        steps //= 2
    return steps


class Spatial(NamedTuple):
    """Gradients of the maps, rows of partial sums of the kernel and of the norm, and counters at zero."""

    dmaps: Tensor
    partial: Tensor
    rows: int
    norm_sums: Any
    norm_rows: int
    arrived: Tensor


RUN = 1 if INTERPRETED else 4
"""Positions of a thread of `convolution_grads`."""


def _spatial_gate(call: Call, dt: Tensor, logits: bool) -> Spatial:
    q, w, n, p = call.problem, call.weights, call.problem.samples, call.problem.positions
    dz, norm_sums, tiles = dt, None, -(-p // 128)
    if not logits:
        dz = dt.new_empty(n * p)
        norm_sums = dt.new_empty(2 * n * tiles) if q.norm else None
        launch(
            kernels.logit_grads, (n * tiles,), dt, call.t, w.spatial_scale, call.maps, w.kernel, call.z, call.z_stats,
            w.norm_weight, w.norm_mean, w.norm_var, dz, norm_sums, p, q.height, q.width, dt.shape[1], tiles, q.eps,
            K=q.k, PLANES=q.planes, HARD=q.hard, BP=128,
        )  # fmt: skip
    if q.norm_training:
        launch(
            kernels.through_statistics, (-(-n * p // 1024),), dz, call.z, call.z_stats, w.norm_weight, norm_sums,
            n * tiles, n, p, BLOCK=128, BP=1024,
        )  # fmt: skip
    runs = q.height * -(-q.width // RUN)
    # Each part leaves k k numbers to be added up, so there are not too many.
    count, per_part = parts(runs, 32, n * (q.k + 1), dz.device, at_most=max(8, 64 // n))
    dmaps = dz.new_empty(n * q.planes * p)
    partial = dz.new_empty(n * count * q.planes * q.k * q.k)
    blocks = -(-q.channels // 4)  # at most so many blocks of channels has `weighted`
    arrived = dz.new_empty(n * blocks, dtype=torch.int32)
    launch(
        convolution_grads, (n * count, q.k + 1), dz, call.maps, w.kernel, dmaps, partial, arrived,
        q.channels, p, q.height, q.width, count, per_part, blocks,
        AVERAGE=q.average_plane, K=q.k, PLANES=q.planes, RUN=RUN, BQ=32, warps=1,
    )  # fmt: skip
    return Spatial(dmaps, partial, n * count, norm_sums, n * tiles, arrived)


def _weighted(call: Call, spatial: Spatial, gate_sums: Tensor, tiles: int) -> tuple[Any, Any]:
    """Return the gradient of the channel gate's logits (N, C), and the sums for a norm in front (N, 3, C)."""
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions
    number = 2 if call.has_norm else 1
    da, per_sample = _channel_results(call, gate_sums)

    def weighted(size: Tile) -> None:
        blocks = -(-c // size.channels)
        splits, per_split = parts(p, size.positions, n * blocks, gate_sums.device)
        sums = gate_sums.new_empty(n * splits * number * c)
        launch_pass(
            passes.weighted, (n * splits, blocks), size, call.u, spatial.dmaps, call.channel_argmax, sums,
            spatial.arrived, gate_sums, tiles, call.s, call.weights.channel_scale, *call.before, da, per_sample,
            c, p, splits, per_split, SUMS=number, HARD=q.hard, AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane,
            LAST=q.channels_last, WHOLE=c % size.channels == 0,
        )  # fmt: skip

    usual = tile(2048, 32 if q.channels_last else 16, c, p, q.channels_last, 4)
    tuned(weighted, usual, "weighted", q, call.u.dtype, number)
    return da, per_sample


def _channel_sums(call: Call, sums: Tensor, tiles: int) -> tuple[Any, Any]:
    """Return the same without a spatial gate."""
    q = call.problem
    da, per_sample = _channel_results(call, sums)
    launch(
        kernels.channel_sums, (q.samples, -(-q.channels // 64)), sums, tiles, None, 0, call.s,
        call.weights.channel_scale, *call.before, da, per_sample, q.channels,
        SUMS=3 if call.has_norm else 1, SECOND=0, HARD=q.hard, BC=64,
    )  # fmt: skip
    return da, per_sample


def _channel_results(call: Call, like: Tensor) -> tuple[Any, Any]:
    count = call.problem.samples * call.problem.channels
    return (
        like.new_empty(count) if call.problem.hidden else None,
        like.new_empty(3 * count) if call.has_norm else None,
    )


def _hidden_grads(call: Call, da: Tensor) -> Tensor:
    q = call.problem
    dhidden = da.new_empty(q.samples * q.rows * q.hidden)
    sizes = {"BN": 1, "BH": 1, "BC": 512} if q.samples <= FEW else {"BN": 16, "BH": 8, "BC": 64}
    launch(
        kernels.hidden_grads, (-(-q.samples // sizes["BN"]), -(-q.hidden // sizes["BH"])), da, call.weights.w1,
        call.hidden, dhidden, q.samples, q.channels, q.hidden, ROWS=q.rows, **sizes,
    )  # fmt: skip
    return dhidden


def _pooled_grads(call: Call, dhidden: Any, per_sample: Any) -> tuple[Any, Any]:
    """Return the gradients of the pooled values (N, rows, C), and the sums over dx and dx u (N, 2, C)."""
    q, n, c = call.problem, call.problem.samples, call.problem.channels
    like = dhidden if per_sample is None else per_sample
    dpooled = like.new_empty(n * q.rows * c) if q.hidden else None
    input_sums = None if per_sample is None else like.new_empty(n * 2 * c)
    sizes = {"BN": 1, "BC": 16, "BH": 128} if n <= FEW else {"BN": 16, "BC": 32, "BH": 16}
    launch(
        kernels.pooled_grads, (-(-n // sizes["BN"]), -(-c // sizes["BC"])), dhidden, call.weights.w0, dpooled, call.s,
        per_sample, call.u, call.position_argmax, input_sums, n, c, q.positions, q.hidden,
        AVERAGE=int(q.average_row >= 0), MAXIMUM=int(q.maximum_row >= 0), LAST=q.channels_last, **sizes,
    )  # fmt: skip
    return dpooled, input_sums


def _parameter_grads(
    call: Call,
    da: Any,
    dhidden: Any,
    spatial: Spatial | None,
    input_sums: Any,
    found: list[Any],
    k1: Any,
    k0: Any,
) -> None:
    q, before = call.problem, call.before
    dw0, db0, dw1, db1, dkernel, dnorm_weight, dnorm_bias, dweight, dbias = found
    size, block = q.planes * q.k * q.k, 16
    channel_blocks = -(-q.channels // 64)
    of_mlp = channel_blocks * -(-q.hidden // 16)
    of_kernel = -(-size // block)
    of_norm = channel_blocks if call.has_norm else 0
    none = (None, 0, None, 0)
    partial, count, norm_sums, tiles = spatial[1:5] if spatial else none
    launch(
        kernels.parameter_grads, (of_mlp + of_kernel + of_norm,), da, dhidden, call.pooled, call.hidden,
        dw0, db0, dw1, db1, partial, dkernel, norm_sums, dnorm_weight, dnorm_bias,
        input_sums, before.weight, before.mean, before.invstd, dweight, dbias, k1, k0,
        q.samples, q.channels, q.positions, q.hidden, channel_blocks, of_mlp, of_kernel, count, tiles, size,
        ROWS=q.rows, BN=16, BC=64, BH=16, BLOCK=block,
    )  # fmt: skip


def _input_grad(call: Call, grad: Tensor, dmaps: Any, dpooled: Any, k1: Any, k0: Any, dx: Tensor) -> None:
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions

    def input_grad(size: Tile) -> None:
        group = max(size.positions, 64) if q.channels_last else size.positions
        tiles = -(-p // group)
        count, per_program = parts(c, size.channels, n * tiles, grad.device)
        launch_pass(
            passes.input_grad, (n * tiles, count), size, call.u, call.before.weight, call.before.invstd, grad,
            call.s, call.t, dmaps, call.channel_argmax, dpooled, call.position_argmax, k1, k0, dx, n, c, p, tiles,
            per_program, AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, MEAN=q.average_row, PEAK=q.maximum_row,
            LAST=q.channels_last, WHOLE=c % size.channels == 0, BG=group,
        )  # fmt: skip

    usual = tile(2048, 16, c, p, q.channels_last, 4)
    tuned(input_grad, usual, "input_grad", q, grad.dtype, call.has_norm, k1 is None)
