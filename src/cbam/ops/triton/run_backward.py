"""A backward call: the tensors that it makes, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cbam.ops.signature import BACKWARD, DIFFERENTIABLE, BackwardArguments
from cbam.ops.triton import backward_kernels as kernels
from cbam.ops.triton import backward_passes as passes
from cbam.ops.triton import blocks
from cbam.ops.triton.blocks import Tile, across, finer, parts, tile
from cbam.ops.triton.convolution_kernels import convolution_grads
from cbam.ops.triton.mode import INTERPRETED
from cbam.ops.triton.plan import Part, Plan, Room
from cbam.ops.triton.plans import addresses_of, kind_of, plan_for
from cbam.ops.triton.problem import Kept, Problem, problem_of
from cbam.ops.triton.run_forward import FEW, joined

RUN = 1 if INTERPRETED else 4
"""Positions of a thread of `convolution_grads`."""
TENSORS = sum(argument.type.startswith("Tensor") for argument in BACKWARD)
SAVED, ARGMAX = TENSORS - 2, TENSORS - 1
OUT = TENSORS - 3
# Where the arguments of the forward call begin, and those whose gradients backward returns besides the map's.
LEARNED = tuple(1 + i for i in DIFFERENTIABLE[1:-1])


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute `cbam::backward`."""
    tensors = arguments[:TENSORS]
    addresses = addresses_of(tensors)
    plan = plan_of(arguments, addresses)
    made = _made(plan.sizes, tensors)
    plan.start((*tensors, *made), [*addresses, *addresses_of(made)])
    return made[:-1]


def plan_of(arguments: Sequence[Any], addresses: Sequence[int]) -> Plan:
    """Return the plan of a call, whose tensors are at these addresses."""
    tensors = arguments[:TENSORS]
    return plan_for(
        ("backward", *kind_of(tensors, addresses, tensors[1], arguments[TENSORS:])),
        lambda tiles: _plan(arguments, tiles),
        lambda plan: (*tensors, *_made(plan.sizes, tensors)),
    )


def _made(sizes: Sequence[int], tensors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return dx, the gradients of the parameters, the one of the residual, and scratch, with nothing in them."""
    x, saved = tensors[1], tensors[SAVED]
    nothing = saved.new_empty(0)
    new = torch.Tensor.new_empty if x.numel() else torch.Tensor.new_zeros
    return (
        torch.empty_like(x),
        *[new(tensors[i], size) if size else nothing for i, size in zip(LEARNED, sizes, strict=False)],
        x.new_empty(0) if tensors[OUT] is None else torch.empty_like(x),
        saved.new_empty(sizes[-1]),
    )


class Call(NamedTuple):
    """What the functions below share: the plan, the call in numbers and in parts, what forward kept."""

    plan: Plan
    problem: Problem
    given: Any
    kept: Kept
    norm: Part | None
    device: torch.device

    @property
    def has_norm(self) -> bool:
        """Whether there is a norm in front."""
        return self.norm is not None


def _plan(arguments: Sequence[Any], tiles: dict[str, Tile]) -> Plan:
    _, x, weights, before, out, saved, _, config = BackwardArguments.parse(arguments)
    q = problem_of(x, weights, config)
    if not q.norm:
        weights = weights._replace(norm_weight=None, norm_bias=None)
    learned = [(*weights, *before)[i - 2] for i in LEARNED]
    sizes = [0 if w is None else w.numel() for w in learned]
    plan = Plan(arguments[:TENSORS], 1 + len(learned) + 2, saved.dtype, tiles)
    given = BackwardArguments.parse((*plan.given, *config[: len(arguments) - TENSORS]))
    kept = q.kept(Room(SAVED, saved.dtype), Room(ARGMAX, torch.int32))
    dx = Part(TENSORS, 0, x.numel(), x.dtype)
    found = [
        None if w is None else Part(TENSORS + 1 + i, 0, w.numel(), w.dtype) for i, w in enumerate(learned)
    ]
    masked = None if out is None else Part(TENSORS + 1 + len(learned), 0, x.numel(), x.dtype)
    if x.numel():
        norm = None if before.mean is None else plan.scratch.part(2 * q.channels)
        _add(Call(plan, q, given, kept, norm, x.device), found, masked, dx)
    plan.sizes = (*sizes, plan.scratch.size)
    return plan


def _add(call: Call, found: list[Any], masked: Any, dx: Part) -> None:
    q, given = call.problem, call.given
    dt, count, logits, sums, tiles = _gate_grads(call, masked)
    spatial = _spatial_gate(call, dt, count, logits) if q.k else None
    dpooled = k1 = k0 = da = dhidden = input_sums = None
    if q.hidden or call.has_norm:
        to = _room(call)
        da, dhidden, dpooled, input_sums = to.da, to.dhidden, to.dpooled, to.input_sums
        together = joined(q) and spatial is not None
        if spatial:
            _weighted(call, spatial, sums, tiles, to, together)
        else:
            _channel_sums(call, sums, tiles, to)
        if not together:
            _through_mlp(call, to)
        if call.has_norm and given.config.pre_training:
            k1, k0 = (call.plan.scratch.part(q.channels) for _ in range(2))
    _parameter_grads(call, da, dhidden, spatial, input_sums, found, k1, k0)
    dmaps = None if spatial is None else spatial.dmaps
    _input_grad(call, given.grad if masked is None else masked, dmaps, dpooled, k1, k0, dx)


def _gate_grads(call: Call, masked: Any) -> tuple[Any, int, bool, Any, int]:
    """Return dt in `count` parts, whether it is already the logits' gradient, the channels' sums, and their number."""
    plan, q, given, kept = call.plan, call.problem, call.given, call.kept
    n, c, p, itemsize = q.samples, q.channels, q.positions, given.x.dtype.itemsize
    number = 3 if call.has_norm else 1 if q.hidden else 0
    elements, longest = (1024, 64) if number == 3 else (2048, 256)  # three sums take as many registers
    usual = across(n, c, p, q.channels_last, itemsize, call.device, elements, longest, shortest=16)
    if q.channels_last and _steps(q, usual.positions, call.device) == 1:
        # One tile a program: sums between lanes are most of the work, so a thread has 64 bytes of it.
        usual = usual._replace(warps=max(1, usual.channels * usual.positions * itemsize // 2048))
    size = plan.tile("gate_grads", usual)
    steps = _steps(q, size.positions, call.device)
    tiles = -(-p // (size.positions * steps))
    # With all channels a program knows dt, so that is worth longer loops.
    count, per_program = (1, c) if q.channels_last else parts(c, size.channels, n * tiles, call.device)
    logits = q.k > 0 and count == 1 and not q.norm
    dt = plan.scratch.part(n * count * p) if q.k else None
    sums = plan.scratch.part(n * tiles * number * c) if number else None
    group = min(16 // itemsize, size.channels) if q.channels_last else 1
    plan.launch_pass(
        passes.gate_grads, (n * tiles, count), size, given.x, *given.before, given.config.pre_eps, call.norm,
        given.grad, given.out, masked, kept.s, kept.t, given.weights.spatial_scale, given.weights.norm_var, q.eps, dt,
        sums, n, c, p, tiles, per_program, BATCH=given.config.pre_training, SUMS=number, LOGITS=logits, HARD=q.hard, LAST=q.channels_last,
        GROUP=group, STEPS=steps, WHOLE=c % size.channels == 0 and p % (size.positions * steps) == 0,
    )  # fmt: skip
    return dt, count, logits, sums, tiles


def _steps(q: Problem, positions: int, device: torch.device) -> int:
    """Return how many tiles a program of `gate_grads` has: several, if there are enough programs."""
    if INTERPRETED or not q.channels_last:
        return 2 if INTERPRETED else 1
    steps, wanted = 4, 6 * blocks.multiprocessors(device)
    while steps > 1 and q.samples * -(-q.positions // (positions * steps)) < wanted:
        steps //= 2
    return steps


class Spatial(NamedTuple):
    """Gradients of the maps, rows of partial sums of the kernel and of the norm, and counters at zero, for a sample."""

    dmaps: Part
    partial: Part
    rows: int
    norm_sums: Any
    norm_rows: int
    arrived: Part
    counters: int


def _spatial_gate(call: Call, dt: Any, parts_of_dt: int, logits: bool) -> Spatial:
    plan, q, w, kept = call.plan, call.problem, call.given.weights, call.kept
    n, p = q.samples, q.positions
    dz, norm_sums, tiles = dt, None, -(-p // 128)
    if not logits:
        dz = plan.scratch.part(n * p)
        norm_sums = plan.scratch.part(2 * n * tiles) if q.norm else None
        plan.launch(
            kernels.logit_grads, (n * tiles,), dt, kept.t, w.spatial_scale, kept.maps, w.kernel, kept.z, kept.z_stats,
            w.norm_weight, w.norm_mean, w.norm_var, dz, norm_sums, p, q.height, q.width, parts_of_dt, tiles, q.eps,
            K=q.k, PLANES=q.planes, INNER=q.inner, HARD=q.hard, BP=128,
        )  # fmt: skip
    if q.norm_training:
        plan.launch(
            kernels.through_statistics, (-(-n * p // 1024),), dz, kept.z, kept.z_stats, w.norm_weight, norm_sums,
            n * tiles, n, p, BLOCK=128, BP=1024,
        )  # fmt: skip
    runs = q.height * -(-q.width // RUN)
    # Each part leaves k k numbers to be added up, so there are not too many.
    count, per_part = parts(runs, 32, n * (q.k + 1), call.device, at_most=max(8, 64 // n))
    dmaps = plan.scratch.part(n * q.planes * p)
    partial = plan.scratch.part(n * count * q.planes * q.k * q.k)
    counters = (
        -(-q.channels // 4) + 1
    )  # at most: one for each block of channels of `weighted`, one for the sample
    arrived = plan.scratch.part(n * counters, torch.int32)
    plan.launch(
        convolution_grads, (n * count, q.k + 1), dz, kept.maps, w.kernel, dmaps, partial, arrived,
        q.channels, p, q.height, q.width, count, per_part, counters,
        AVERAGE=q.average_plane, K=q.k, PLANES=q.planes, INNER=q.inner, RUN=RUN, BQ=32, warps=1,
    )  # fmt: skip
    return Spatial(dmaps, partial, n * count, norm_sums, n * tiles, arrived, counters)


class Mlp(NamedTuple):
    """What goes backward through the MLP.

    Args:
        da: gradient of the channel gate's logits, (N, C).
        per_sample: for a norm in front, sums over g' u, g' and u, (N, 3, C).
        dhidden: gradient of the hidden layer, (N, rows, h).
        dpooled: gradients of the pooled values, (N, rows, C).
        input_sums: for a norm in front, sums over dx and dx u, (N, 2, C).
    """

    da: Part | None
    per_sample: Part | None
    dhidden: Part | None
    dpooled: Part | None
    input_sums: Part | None


def _room(call: Call) -> Mlp:
    q, part = call.problem, call.plan.scratch.part
    n, c = q.samples, q.channels
    return Mlp(
        part(n * c) if q.hidden else None,
        part(3 * n * c) if call.has_norm else None,
        part(n * q.rows * q.hidden) if q.hidden else None,
        part(n * q.rows * c) if q.hidden else None,
        part(2 * n * c) if call.has_norm else None,
    )


def _weighted(call: Call, spatial: Spatial, gate_sums: Any, tiles: int, to: Mlp, together: bool) -> None:
    """Add up over the positions; `together`: go backward through the MLP too."""
    plan, q, given, kept = call.plan, call.problem, call.given, call.kept
    n, c, p, w = q.samples, q.channels, q.positions, given.weights
    number = 2 if call.has_norm else 1
    size = plan.tile("weighted", tile(2048, 32 if q.channels_last else 16, c, p, q.channels_last, 4))
    rows = -(-c // size.channels)
    splits, per_split = parts(p, size.positions, n * rows, call.device)
    sums = plan.scratch.part(n * splits * number * c)
    mlp = (w.w0, w.w1, kept.hidden, to.dhidden, to.dpooled, kept.position_argmax, to.input_sums)
    plan.launch_pass(
        passes.weighted, (n * splits, rows), size, given.x, spatial.dmaps, kept.channel_argmax, sums,
        spatial.arrived, gate_sums, tiles, kept.s, w.channel_scale, call.norm, to.da, to.per_sample,
        *(mlp if together else [None] * len(mlp)), q.hidden, c, p, splits, per_split, spatial.counters, SUMS=number,
        HARD=q.hard, AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, MEAN=int(q.average_row >= 0),
        PEAK=int(q.maximum_row >= 0), LAST=q.channels_last, WHOLE=c % size.channels == 0, GATES=64, UNITS=8,
    )  # fmt: skip


def _channel_sums(call: Call, sums: Any, tiles: int, to: Mlp) -> None:
    """The same without a spatial gate."""
    q, given = call.problem, call.given
    call.plan.launch(
        kernels.channel_sums, (q.samples, -(-q.channels // 64)), sums, tiles, None, 0, call.kept.s,
        given.weights.channel_scale, call.norm, to.da, to.per_sample, q.channels,
        SUMS=3 if call.has_norm else 1, SECOND=0, HARD=q.hard, BC=64,
    )  # fmt: skip


def _through_mlp(call: Call, to: Mlp) -> None:
    plan, q, kept, w = call.plan, call.problem, call.kept, call.given.weights
    n, c = q.samples, q.channels
    few = n <= FEW
    if q.hidden:
        sizes = {"BN": 1, "BH": 1, "BC": 512} if few else {"BN": 16, "BH": 8, "BC": 64}
        plan.launch(
            kernels.hidden_grads, (-(-n // sizes["BN"]), -(-q.hidden // sizes["BH"])), to.da, w.w1, kept.hidden,
            to.dhidden, n, c, q.hidden, ROWS=q.rows, **sizes,
        )  # fmt: skip
    sizes = {"BN": 1, "BC": 16, "BH": 128} if few else {"BN": 16, "BC": 32, "BH": 16}
    plan.launch(
        kernels.pooled_grads, (-(-n // sizes["BN"]), -(-c // sizes["BC"])), to.dhidden, w.w0, to.dpooled, kept.s,
        to.per_sample, call.given.x, kept.position_argmax, to.input_sums, n, c, q.positions, q.hidden,
        AVERAGE=int(q.average_row >= 0), MAXIMUM=int(q.maximum_row >= 0), LAST=q.channels_last, **sizes,
    )  # fmt: skip


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
    q, kept, before = call.problem, call.kept, call.given.before
    dw0, db0, dw1, db1, dkernel, dnorm_weight, dnorm_bias, dweight, dbias = found
    size, block = q.planes * q.k * q.k, 16
    channel_blocks = -(-q.channels // 64)
    of_mlp = channel_blocks * -(-q.hidden // 16)
    of_kernel = -(-size // block)
    of_norm = channel_blocks if call.has_norm else 0
    none = (None, 0, None, 0)
    partial, count, norm_sums, tiles = spatial[1:5] if spatial else none
    call.plan.launch(
        kernels.parameter_grads, (of_mlp + of_kernel + of_norm,), da, dhidden, kept.pooled, kept.hidden,
        dw0, db0, dw1, db1, partial, dkernel, norm_sums, dnorm_weight, dnorm_bias,
        input_sums, before.weight, before.mean, before.var, call.given.config.pre_eps, dweight, dbias, k1, k0,
        q.samples, q.channels, q.positions, q.hidden, channel_blocks, of_mlp, of_kernel, count, tiles, size,
        ROWS=q.rows, BATCH=call.given.config.pre_training, BN=16, BC=64, BH=16, BLOCK=block,
    )  # fmt: skip


def _input_grad(call: Call, grad: Part, dmaps: Any, dpooled: Any, k1: Any, k0: Any, dx: Part) -> None:
    plan, q, given, kept = call.plan, call.problem, call.given, call.kept
    n, c, p = q.samples, q.channels, q.positions
    usual = tile(2048, 16, c, p, q.channels_last, 4)
    shares = n * -(-p // (max(usual.positions, 64) if q.channels_last else usual.positions))
    size = plan.tile("input_grad", finer(usual, shares, c, call.device))
    group = max(size.positions, 64) if q.channels_last else size.positions
    rows = n * -(-c // size.channels)
    while group > size.positions and rows * -(-p // group) < blocks.multiprocessors(call.device):
        group //= 2
    tiles = -(-p // group)
    count, per_program = parts(c, size.channels, n * tiles, call.device)
    plan.launch_pass(
        passes.input_grad, (n * tiles, count), size, given.x, call.norm, grad, kept.s,
        kept.t, dmaps, kept.channel_argmax, dpooled, kept.position_argmax, k1, k0, dx, n, c, p, tiles, per_program,
        AVERAGE=q.average_plane, MAXIMUM=q.maximum_plane, MEAN=q.average_row, PEAK=q.maximum_row,
        LAST=q.channels_last, WHOLE=c % size.channels == 0, BG=group,
    )  # fmt: skip
