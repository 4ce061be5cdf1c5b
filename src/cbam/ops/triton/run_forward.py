"""A forward call: the tensors that it makes, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import TENSORS, ForwardArguments
from cbam.ops.triton import blocks
from cbam.ops.triton import forward_kernels as kernels
from cbam.ops.triton import forward_passes as passes
from cbam.ops.triton.blocks import Tile, across, finer, parts, tile
from cbam.ops.triton.plan import Part, Plan, Room
from cbam.ops.triton.plans import addresses_of, kind_of, plan_for
from cbam.ops.triton.problem import Kept, Problem, problem_of

FEW = 4
"""Up to so many samples, each program of the MLP has one of them."""
# Samples of a program of the MLP, and what it sums at a time; shares of the pooling at a time.
MANY_HIDDEN = {"BN": 16, "BH": 8, "BC": 64, "BS": 2}
ONE_HIDDEN = {"BN": 1, "BH": 1, "BC": 256, "BS": 16}
MANY_GATES = {"BN": 16, "BC": 32, "BH": 16}
ONE_GATE = {"BN": 1, "BC": 16, "BH": 128}


JOINED = 1 << 13
"""Largest number of weights of a layer that one program computes at the end of the kernel before it."""


def joined(q: Problem) -> bool:
    """Return whether layers of the MLP are computed by the last program of the kernel before: fewer launches.

    Larger ones take a single program longer than a launch does.
    """
    return 0 < q.hidden * q.channels <= JOINED


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `cbam::forward`."""
    tensors = arguments[:TENSORS]
    x, addresses = tensors[0], addresses_of(tensors)
    plan = plan_of(arguments, addresses)
    made = y, saved, argmax, stats, _ = _made(plan.sizes, x)
    plan.start((*tensors, *made), [*addresses, *addresses_of(made)])
    return y, saved, argmax, stats


def plan_of(arguments: Sequence[Any], addresses: Sequence[int]) -> Plan:
    """Return the plan of a call, whose tensors are at these addresses."""
    tensors = arguments[:TENSORS]
    x = tensors[0]
    return plan_for(
        ("forward", *kind_of(tensors, addresses, x, arguments[TENSORS:])),
        lambda tiles: _plan(arguments, tiles),
        lambda plan: (*tensors, *_made(plan.sizes, x)),
    )


def _made(sizes: Sequence[int], x: Tensor) -> tuple[Tensor, ...]:
    """Return y, kept numbers, kept indices, statistics and scratch, with nothing in them."""
    saved = x.new_empty(sizes[0], dtype=accumulation_dtype(x.dtype))
    return (
        torch.empty_like(x), saved, x.new_empty(sizes[1], dtype=torch.int32), saved.new_empty(sizes[2]),
        saved.new_empty(sizes[3]),
    )  # fmt: skip


def _plan(arguments: Sequence[Any], tiles: dict[str, Tile]) -> Plan:
    x, weights, _, _, config, keep = ForwardArguments.parse(arguments)
    q, dtype = problem_of(x, weights, config), accumulation_dtype(x.dtype)
    plan = Plan(arguments[:TENSORS], 5, dtype, tiles)
    y, stats = Part(TENSORS, 0, x.numel(), x.dtype), Part(TENSORS + 3, 0, 2, dtype)
    numbers, indices = Room(TENSORS + 1, dtype), Room(TENSORS + 2, torch.int32)
    kept = q.kept(numbers if keep else plan.scratch, indices if keep else None)
    if x.numel():
        call = ForwardArguments.parse((*plan.given, *config, keep))
        norm = None if call.before.mean is None else plan.scratch.part(2 * q.channels)
        before = (*call.before, config.pre_eps, norm)
        if q.hidden:
            _channel_gate(plan, q, call, kept, before, x.device)
        if q.k:
            _squeeze(plan, q, call, kept, before, x.device)
        if q.norm_training:
            _statistics(plan, q, call, kept, stats)
        _apply(plan, q, call, kept, norm, y, x.device)
    plan.sizes = (numbers.size, indices.size, 2 * q.norm_training, plan.scratch.size)
    return plan


def _channel_gate(
    plan: Plan, q: Problem, call: Any, kept: Kept, before: tuple[Any, ...], device: torch.device
) -> None:
    n, c, p, w = q.samples, q.channels, q.positions, call.weights
    average, maximum = int(q.average_row >= 0), int(q.maximum_row >= 0)
    size = plan.tile("pool", tile(2048, 32 if q.channels_last else 16, c, p, q.channels_last, 4))
    rows = -(-c // size.channels)
    splits, per_split = parts(p, size.positions, n * rows, device)
    sums, maxima = plan.scratch.part(n * splits * c), plan.scratch.part(n * splits * c)
    firsts = None if kept.position_argmax is None else plan.scratch.part(n * splits * c, torch.int32)
    together = joined(q)
    arrived = plan.scratch.part(n, torch.int32) if together else None
    plan.launch_pass(
        passes.pool, (n * splits, rows), size, call.x, *before, sums, maxima, firsts, arrived, c, p, splits,
        per_split, BATCH=call.config.pre_training, AVERAGE=average, MAXIMUM=maximum, LAST=q.channels_last,
        WHOLE=c % size.channels == 0,
    )  # fmt: skip
    few = n <= FEW
    sizes = ONE_HIDDEN if few else MANY_HIDDEN
    plan.launch(
        kernels.hidden, (-(-n // sizes["BN"]), -(-q.hidden // sizes["BH"])), sums, maxima, firsts, w.w0, w.b0,
        kept.pooled, kept.position_argmax, kept.hidden, arrived, w.w1, w.b1, w.channel_scale, kept.s,
        n, c, p, q.hidden, splits, AVERAGE=average, MAXIMUM=maximum, HARD=q.hard, **sizes, GATES=256 if few else 128,
        UNITS=16,
    )  # fmt: skip
    if together:
        return
    sizes = ONE_GATE if few else MANY_GATES
    plan.launch(
        kernels.channel_gate, (-(-n // sizes["BN"]), -(-c // sizes["BC"])), kept.hidden, w.w1, w.b1, w.channel_scale,
        kept.s, n, c, q.hidden, ROWS=q.rows, HARD=q.hard, **sizes,
    )  # fmt: skip


def _squeeze(
    plan: Plan, q: Problem, call: Any, kept: Kept, before: tuple[Any, ...], device: torch.device
) -> None:
    n, c, p, itemsize = q.samples, q.channels, q.positions, call.x.dtype.itemsize
    size = plan.tile("squeeze", across(n, c, p, q.channels_last, itemsize, device, longest=64))
    tiles = -(-p // size.positions)
    group = min(16 // itemsize, size.channels) if q.channels_last else 1  # channels of a thread's read
    plan.launch_pass(
        passes.squeeze, (n * tiles,), size, call.x, *before, kept.s, kept.maps, kept.channel_argmax, n, c, p, tiles,
        FOLD=before[-1] is not None and not q.hidden, BATCH=call.config.pre_training, AVERAGE=q.average_plane,
        MAXIMUM=q.maximum_plane, LAST=q.channels_last, GROUP=group,
    )  # fmt: skip


def _statistics(plan: Plan, q: Problem, call: Any, kept: Kept, stats: Part) -> None:
    size = 128
    tiles = -(-q.positions // size)
    partial = plan.scratch.part(q.samples * tiles * 3)
    plan.launch(
        kernels.logits, (q.samples * tiles,), kept.maps, call.weights.kernel, kept.z, partial, q.positions, q.height,
        q.width, tiles, K=q.k, PLANES=q.planes, INNER=q.inner, BP=size,
    )  # fmt: skip
    plan.launch(kernels.statistics, (1,), partial, kept.z_stats, stats, q.samples * tiles, q.eps, BLOCK=1024)


def _apply(
    plan: Plan,
    q: Problem,
    call: Any,
    kept: Kept,
    norm: Part | None,
    y: Part,
    device: torch.device,
) -> None:
    n, c, p, w = q.samples, q.channels, q.positions, call.weights
    usual = tile(2048, 16, c, p, q.channels_last, 2 if q.channels_last else 4)
    usual = finer(usual, n * -(-p // _gates(q, usual)), c, device)
    programs = n * -(-p // _gates(q, usual)) * -(-c // usual.channels)
    if q.channels_last and programs < blocks.multiprocessors(device):
        usual = usual._replace(warps=1)  # and half as many positions
    size = plan.tile("apply", usual)
    gates = _gates(q, size)
    tiles = -(-p // gates)
    count, per_program = parts(c, size.channels, n * tiles, device)
    plan.launch_pass(
        passes.apply, (n * tiles, count), size, call.x, norm, kept.s, kept.maps, w.kernel, kept.z,
        kept.z_stats, w.norm_weight, w.norm_bias, w.norm_mean, w.norm_var, w.spatial_scale, kept.t, call.residual, y,
        c, p, q.height, q.width, tiles, per_program, q.eps,
        K=q.k, PLANES=q.planes, INNER=q.inner, HARD=q.hard, RELU=call.config.relu, LAST=q.channels_last,
        WHOLE=c % size.channels == 0, BG=gates,
    )  # fmt: skip


def _gates(q: Problem, size: Tile) -> int:
    """Return the positions of a program of `apply`: one a thread for the convolution; its tiles are parts of them."""
    return max(size.positions, 32 * size.warps) if q.channels_last else size.positions
