"""The launches of a backward call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cbam.ops.signature import DIFFERENTIABLE, BackwardArguments, NormBefore, Weights
from cbam.ops.triton import backward_kernels as kernels
from cbam.ops.triton import backward_passes as passes
from cbam.ops.triton.blocks import Tile, parts, tile
from cbam.ops.triton.launch import launch, launch_pass, tuned
from cbam.ops.triton.problem import Problem, problem_of
from cbam.ops.triton.run_forward import DENSE, TAPS


class Call(NamedTuple):
    """A backward call: its numbers, its tensors, and what the forward call kept, as a whole and in parts."""

    problem: Problem
    numbers: Tensor
    weights: Weights
    before: NormBefore
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
    grad, x, weights, before, out, saved, argmax, config, pre_training = BackwardArguments.parse(arguments)
    q = problem_of(x, weights, config)
    call = Call(q, saved, weights, before, x, *q.split(saved), *q.split_argmax(argmax))
    dx, masked = torch.empty_like(x), None if out is None else torch.empty_like(x)
    if not q.norm:
        weights = weights._replace(norm_weight=None, norm_bias=None)
    wanted = [(*weights, *before)[i - 1] for i in DIFFERENTIABLE[1:-1]]  # without x and the residual
    new = saved.new_empty if x.numel() else saved.new_zeros
    found = [new(0 if w is None else w.numel()) for w in wanted]
    if x.numel():
        _run(call, grad, out, masked, dx, [g if g.numel() else None for g in found], pre_training)
    return (dx, *found, x.new_empty(0) if masked is None else masked)


def _run(
    call: Call, grad: Tensor, out: Any, masked: Any, dx: Tensor, found: list[Any], pre_training: bool
) -> None:
    q, before = call.problem, call.before
    dw0, db0, dw1, db1, dkernel, dnorm_weight, dnorm_bias, dweight, dbias = found
    c = q.channels
    dt, sums, tiles = _gate_grads(call, grad, out, masked)
    dmaps = _spatial_gate(call, dt, dkernel, dnorm_weight, dnorm_bias) if q.k else None
    dpooled = k1 = k0 = None
    if q.hidden or call.has_norm:
        second, splits = (None, 0) if dmaps is None else _weighted(call, dmaps)
        da, per_sample = _channel_sums(call, sums, tiles, second, splits)
        dhidden = _hidden_grads(call, da) if q.hidden else None
        dpooled, input_sums = _pooled_grads(call, dhidden, per_sample)
        if q.hidden:
            launch(
                kernels.weight_grads, (-(-c // DENSE["BC"]), -(-q.hidden // DENSE["BH"])), da, dhidden, call.pooled,
                call.hidden, dw0, db0, dw1, db1, q.samples, c, q.hidden, ROWS=q.rows, **DENSE,
            )  # fmt: skip
        if call.has_norm:
            if pre_training:
                k1, k0 = input_sums.new_empty(2, c)
            launch(
                kernels.norm_grads, (-(-c // 64),), input_sums, before.weight, before.mean, before.invstd,
                dweight, dbias, k1, k0, q.samples, c, q.positions, ROWS=16, BC=64,
            )  # fmt: skip
    _input_grad(call, grad if masked is None else masked, dmaps, dpooled, k1, k0, dx)


def _gate_grads(call: Call, grad: Tensor, out: Any, masked: Any) -> tuple[Any, Any, int]:
    """Return partial sums of dt and of the channels, and the number of the latter for a sample."""
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions
    number = 3 if call.has_norm else 1 if q.hidden else 0

    def gate_grads(size: Tile) -> tuple[Any, Any, int]:
        tiles = -(-p // size.positions)
        count, per_program = parts(c, size.channels, n * tiles, grad.device)
        dt = call.numbers.new_empty(n, count, p) if q.k else None
        sums = call.numbers.new_empty(n * tiles * number * c) if number else None
        launch_pass(
            passes.gate_grads, (n * tiles, count), size, call.u, *call.before, grad, out, masked, call.s, call.t,
            dt, sums, n, c, p, tiles, per_program, SUMS=number, LAST=q.channels_last,
        )  # fmt: skip
        return dt, sums, tiles

    usual = tile(4096, 64, c, p, q.channels_last, 8)
    return tuned(gate_grads, usual, "gate_grads", q, grad.dtype, number, out is None)


def _spatial_gate(call: Call, dt: Tensor, dkernel: Any, dnorm_weight: Any, dnorm_bias: Any) -> Tensor:
    """Return the gradients of the spatial descriptor's maps, (N, planes, P)."""
    q, w, n, p = call.problem, call.weights, call.problem.samples, call.problem.positions
    dz = dt.new_empty(n * p)
    norm_sums = dt.new_empty(2 * n) if q.norm else None
    launch(
        kernels.logit_grads, (n,), dt, call.t, w.spatial_scale, call.maps, w.kernel, call.z, call.z_stats,
        w.norm_weight, w.norm_mean, w.norm_var, dz, norm_sums, p, q.height, q.width, dt.shape[1], q.eps,
        K=q.k, PLANES=q.planes, HARD=q.hard, TAPS=TAPS, BP=256,
    )  # fmt: skip
    if q.norm_training:
        launch(
            kernels.through_statistics, (-(-n * p // 1024),), dz, call.z, call.z_stats, w.norm_weight, norm_sums,
            n, p, BLOCK=128, BP=1024,
        )  # fmt: skip
    taps = 1 << (q.k * q.k - 1).bit_length()
    block = max(8, 2048 // taps)
    # Each part leaves k k numbers to be added up, so there are not too many.
    count, per_part = parts(p, block, n, dz.device, at_most=8)
    dmaps = dz.new_empty(n * q.planes * p)
    partial = dz.new_empty(n * count * q.planes * q.k * q.k)
    launch(
        kernels.convolution_grads, (n * count,), dz, call.maps, w.kernel, dmaps, partial, q.channels, p,
        q.height, q.width, count, per_part, AVERAGE=q.average_plane, K=q.k, PLANES=q.planes, TAPS=taps, BP=block,
    )  # fmt: skip
    size = q.planes * q.k * q.k
    launch(
        kernels.kernel_grads, (-(-size // 16),), partial, dkernel, norm_sums, dnorm_weight, dnorm_bias,
        n * count, n, size, ROWS=64, BLOCK=16,
    )  # fmt: skip
    return dmaps


def _weighted(call: Call, dmaps: Tensor) -> tuple[Tensor, int]:
    """Return partial sums of the channels that come from the spatial descriptor, and their number."""
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions
    number = 2 if call.has_norm else 1

    def weighted(size: Tile) -> tuple[Tensor, int]:
        blocks = -(-c // size.channels)
        splits, per_split = parts(p, size.positions, n * blocks, dmaps.device)
        sums = dmaps.new_empty(n * splits * number * c)
        launch_pass(
            passes.weighted, (n * splits, blocks), size, call.u, dmaps, call.channel_argmax, sums, c, p, splits,
            per_split, SUMS=number, AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, LAST=q.channels_last,
        )  # fmt: skip
        return sums, splits

    usual = tile(2048, 16, c, p, q.channels_last, 4)
    return tuned(weighted, usual, "weighted", q, call.u.dtype, number)


def _channel_sums(call: Call, sums: Tensor, tiles: int, second: Any, splits: int) -> tuple[Any, Any]:
    """Return the gradient of the channel gate's logits (N, C), and the sums for a norm in front (N, 3, C)."""
    q, w, n, c = call.problem, call.weights, call.problem.samples, call.problem.channels
    da = sums.new_empty(n * c) if q.hidden else None
    per_sample = sums.new_empty(n * 3 * c) if call.has_norm else None
    launch(
        kernels.channel_sums, (n, -(-c // 128)), sums, tiles, second, splits, call.s, w.channel_scale, *call.before,
        da, per_sample, c, SUMS=3 if call.has_norm else 1, SECOND=0 if second is None else 2 if call.has_norm else 1,
        HARD=q.hard, BC=128,
    )  # fmt: skip
    return da, per_sample


def _hidden_grads(call: Call, da: Tensor) -> Tensor:
    q = call.problem
    dhidden = da.new_empty(q.samples * q.rows * q.hidden)
    launch(
        kernels.hidden_grads, (-(-q.samples // DENSE["BN"]), -(-q.hidden // DENSE["BH"])), da, call.weights.w1,
        call.hidden, dhidden, q.samples, q.channels, q.hidden, ROWS=q.rows, **DENSE,
    )  # fmt: skip
    return dhidden


def _pooled_grads(call: Call, dhidden: Any, per_sample: Any) -> tuple[Any, Any]:
    """Return the gradients of the pooled values (N, rows, C), and the sums over dx and dx u (N, 2, C)."""
    q, n, c = call.problem, call.problem.samples, call.problem.channels
    like = dhidden if per_sample is None else per_sample
    dpooled = like.new_empty(n * q.rows * c) if q.hidden else None
    input_sums = None if per_sample is None else like.new_empty(n * 2 * c)
    launch(
        kernels.pooled_grads, (-(-n // DENSE["BN"]), -(-c // DENSE["BC"])), dhidden, call.weights.w0, dpooled, call.s,
        per_sample, call.u, call.position_argmax, input_sums, n, c, q.positions, q.hidden,
        AVERAGE=int(q.average_row >= 0), MAXIMUM=int(q.maximum_row >= 0), LAST=q.channels_last, **DENSE,
    )  # fmt: skip
    return dpooled, input_sums


def _input_grad(call: Call, grad: Tensor, dmaps: Any, dpooled: Any, k1: Any, k0: Any, dx: Tensor) -> None:
    q, n, c, p = call.problem, call.problem.samples, call.problem.channels, call.problem.positions

    def input_grad(size: Tile) -> None:
        tiles = -(-p // size.positions)
        count, per_program = parts(c, size.channels, n * tiles, grad.device)
        launch_pass(
            passes.input_grad, (n * tiles, count), size, call.u, call.before.weight, call.before.invstd, grad,
            call.s, call.t, dmaps, call.channel_argmax, dpooled, call.position_argmax, k1, k0, dx, n, c, p, tiles,
            per_program, AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, MEAN=q.average_row, PEAK=q.maximum_row,
            LAST=q.channels_last,
        )  # fmt: skip

    usual = tile(4096, 64, c, p, q.channels_last, 8)
    tuned(input_grad, usual, "input_grad", q, grad.dtype, call.has_norm, k1 is None)
