"""The forward pass's three reads of the map and its one write.

pool -> (MLP) -> squeeze -> apply, with the small kernels of `forward_kernels.py` between them. Every pass takes the
samples in the reverse order of the one before, to begin with what is still in the second-level cache. The main loop of
a pass has no masks along the axis it walks; what is left of the axis follows in a masked step.

Where the indices of maxima are wanted, the loops compare with a plain `>`, which never takes a NaN. A NaN makes the sum
a NaN too, and then the program does its part again, the exact way.
"""

import triton
import triton.language as tl

from cbam.ops.triton.common import (
    affine,
    cast,
    divided,
    fold,
    larger,
    largest,
    loaded,
    normalised,
    plus,
    relu,
    spatial_gate,
    stored,
    tile_offsets,
    times,
    wait_for_the_kernel_before,
    widened,
)


@triton.jit
def pool(u, weight, bias, mean, var, eps, norm, sums, maxima, firsts, arrived, C, P, splits, per_split,
         BATCH: tl.constexpr, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr,
         BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Sum, maximum and its first place over a share of the positions: (N, splits, C) each; `firsts` may be None.

    Folds the norm in front, if there is one, for all kernels behind; sets `arrived` (N,) to zero for `hidden`.

    WHOLE: C is a multiple of BC.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = sums.dtype.element_ty
    PLACES: tl.constexpr = MAXIMUM and firsts is not None
    part = tl.program_id(0)
    n = (part // splits).to(tl.int64)
    if arrived is not None:
        tl.store(arrived + n, 0)
    start = part % splits * per_split
    end = tl.minimum(start + per_split, P)
    full = start + (end - start) // BP * BP
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    lane = tl.arange(0, BP)
    offsets = tile_offsets(c, lane, C, P, LAST)
    step = C if LAST else 1
    u += n * C * P
    if norm is not None:
        c0 = tl.program_id(1) * BC
        fold(weight, bias, mean, var, eps, norm, c0, tl.minimum(c0 + BC, C), C, BATCH, BC)
    alpha, beta = affine(norm, c, c < C, C, ACC)
    total = tl.zeros((BC, BP), ACC)
    top = tl.full((BC, BP), float("-inf"), ACC)
    at = tl.full((BC, BP), 0, tl.int32) + start
    for p0 in range(start, full, BP):
        known = None if WHOLE else (c < C)[:, None]
        x = tl.load(u + (offsets + p0 * step), mask=known, eviction_policy="evict_last")
        x = widened(normalised(x, alpha, beta, norm), ACC)
        if AVERAGE or PLACES:
            total += x
        if PLACES:
            take = x > top
            top = tl.where(take, x, top)
            at = tl.where(take, p0, at)
        elif MAXIMUM:
            top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    if full < end:
        inside = (c < C)[:, None] & (full + lane < end)[None, :]
        x = tl.load(u + (offsets + full * step), mask=inside, other=0.0)
        x = widened(normalised(x, alpha, beta, norm), ACC)
        if AVERAGE or PLACES:
            total += tl.where(inside, x, 0.0)
        x = tl.where(inside, x, float("-inf"))
        if PLACES:
            take = x > top
            top = tl.where(take, x, top)
            at = tl.where(take, full, at)
        elif MAXIMUM:
            top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    row = (n * splits + part % splits) * C + c
    if AVERAGE or PLACES:
        added = tl.sum(total, 1)
    if AVERAGE:
        tl.store(sums + row, added, mask=c < C)
    if PLACES:
        best = tl.max(top, 1)
        first = tl.min(tl.where(top == best[:, None], at + lane[None, :], 2147483647), 1)
        if tl.max(((added != added) & (c < C)).to(tl.int32), 0) > 0:
            best = tl.full((BC,), float("-inf"), ACC)
            first = tl.full((BC,), 0, tl.int32) + start
            for p in range(start, end):  # seldom: few registers count for more than speed
                x = tl.load(u + (c * (1 if LAST else P) + p * step), mask=c < C, other=0.0).to(ACC)
                if norm is not None:
                    x = stored(tl.fma(x, alpha, beta), u.dtype.element_ty)
                take = larger(x, best)
                best = tl.where(take, x, best)
                first = tl.where(take, p, first)
        tl.store(maxima + row, best, mask=c < C)
        tl.store(firsts + row, first, mask=c < C)
    elif MAXIMUM:
        tl.store(maxima + row, largest(top, 1), mask=c < C)


@triton.jit
def gated(u, norm, s, c, channels, offsets, inside, C, ACC: tl.constexpr):
    """The tile s x, rounded to the map's type, at channels c (BC,); the masks may be None."""
    x = loaded(u + offsets, inside, "evict_last")
    alpha, beta = affine(norm, c, channels, C, ACC)
    x = normalised(x, alpha, beta, norm)
    if s is not None:
        factor = loaded(s + c, channels, "")
        x = times(x, cast(factor, u.dtype.element_ty)[:, None])
    return widened(x, ACC)


@triton.jit
def squeezed(x, total, top, at, c0, SUM: tl.constexpr, MAXIMUM: tl.constexpr, PLACES: tl.constexpr,
             GROUP: tl.constexpr):  # fmt: skip
    """One more tile x (BC, BP) of channels: GROUP neighbours, which one thread holds, are put together first."""
    x = tl.reshape(x, (x.shape[0] // GROUP, GROUP, x.shape[1]))
    if SUM:
        total += tl.sum(x, 1)
    if PLACES:
        peak = tl.max(x, 1)
        take = peak > top
        top = tl.where(take, peak, top)
        at = tl.where(take, c0, at)
    elif MAXIMUM:
        top = tl.maximum(top, largest(x, 1), propagate_nan=tl.PropagateNan.ALL)
    return total, top, at


@triton.jit
def squeeze(u, weight, bias, mean, var, eps, norm, s, maps, argmax, samples, C, P, tiles,
            FOLD: tl.constexpr, BATCH: tl.constexpr, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr,
            LAST: tl.constexpr, GROUP: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Mean and maximum over channels of s x: planes number AVERAGE and MAXIMUM (-1: none) of `maps` (N, planes, P).

    FOLD: no kernel before this one has folded the norm in front. Which of a group's channels is the maximum's is
    looked up at the end: the loop only finds the group.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = maps.dtype.element_ty
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    PLACES: tl.constexpr = MAXIMUM >= 0 and argmax is not None
    SUM: tl.constexpr = AVERAGE >= 0 or PLACES
    GROUPS: tl.constexpr = BC // GROUP
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    read = tl.minimum(p, P - 1) if LAST else p  # the last position again instead of a mask
    lane = tl.arange(0, BC)
    offsets = tile_offsets(lane, read, C, P, LAST)
    step = 1 if LAST else P
    u += n * C * P
    if s is not None:
        s += n * C
    if FOLD:
        fold(weight, bias, mean, var, eps, norm, 0, C, C, BATCH, 128)
    total = tl.zeros((GROUPS, BP), ACC)
    top = tl.full((GROUPS, BP), float("-inf"), ACC)
    at = tl.zeros((GROUPS, BP), tl.int32)
    full = C // BC * BC
    for c0 in range(0, full, BC):
        mask = None if LAST else (p < P)[None, :]
        x = gated(u, norm, s, c0 + lane, None, offsets + c0 * step, mask, C, ACC)
        total, top, at = squeezed(x, total, top, at, c0, SUM, MAXIMUM >= 0, PLACES, GROUP)
    if full < C:
        c = full + lane
        inside = (c < C)[:, None] & (p < P)[None, :]
        x = gated(u, norm, s, c, c < C, offsets + full * step, inside, C, ACC)
        if SUM:
            whole = tl.reshape(tl.where(inside, x, 0.0), (GROUPS, GROUP, BP))
            total += tl.sum(whole, 1)
        x = tl.where(inside, x, float("-inf"))
        total, top, at = squeezed(x, total, top, at, full, False, MAXIMUM >= 0, PLACES, GROUP)
    maps += n * PLANES * P
    if SUM:
        added = tl.sum(total, 0)
    if AVERAGE >= 0:
        tl.store(maps + AVERAGE * P + p, divided(added, tl.full([1], 0, ACC) + C), mask=p < P)
    if PLACES:
        best = tl.max(top, 0)
        group = at + (tl.arange(0, GROUPS) * GROUP)[:, None]
        first = tl.min(tl.where(top == best[None, :], group, 2147483647), 0)
        if GROUP > 1:
            near = first[None, :] + tl.arange(0, GROUP)[:, None]
            at_positions = (near < C) & (p < P)[None, :]
            member = gated_at(u, norm, s, near, read[None, :], at_positions, C, P, LAST, ACC)
            first = tl.min(tl.where((near < C) & (member == best[None, :]), near, 2147483647), 0)
        if tl.max(((added != added) & (p < P)).to(tl.int32), 0) > 0:
            best = tl.full((BP,), float("-inf"), ACC)
            first = tl.zeros((BP,), tl.int32)
            for c in range(C):
                x = gated_at(u, norm, s, c, read, p < P, C, P, LAST, ACC)
                take = larger(x, best)
                best = tl.where(take, x, best)
                first = tl.where(take, c, first)
        tl.store(maps + MAXIMUM * P + p, best, mask=p < P)
        tl.store(argmax + n * P + p, first, mask=p < P)
    elif MAXIMUM >= 0:
        tl.store(maps + MAXIMUM * P + p, largest(top, 0), mask=p < P)


@triton.jit
def gated_at(u, norm, s, c, p, inside, C, P, LAST: tl.constexpr, ACC: tl.constexpr):
    """s x at single channels c and positions p, of shapes that broadcast to that of `inside`."""
    T: tl.constexpr = u.dtype.element_ty
    x = tl.load(u + (p * C + c if LAST else c * P + p), mask=inside, other=0.0)
    if norm is not None:
        alpha, beta = tl.load(norm + c, mask=c < C), tl.load(norm + C + c, mask=c < C)
        wide = x.to(ACC)
        x = cast(tl.fma(wide, tl.zeros_like(wide) + alpha, tl.zeros_like(wide) + beta), T)
    if s is not None:
        x = times(x, cast(tl.load(s + c, mask=c < C, other=0.0), T))
    return x.to(ACC)


@triton.jit
def apply(u, norm, s, maps, kernel, z, z_stats, norm_weight, norm_bias, norm_mean, norm_var,
          scale, t, residual, y, C, P, height, width, tiles, per_program, eps,
          K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr, HARD: tl.constexpr, RELU: tl.constexpr,
          LAST: tl.constexpr, WHOLE: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """y = s x t, rounded after each product; with a residual y = relu(s x t + residual). Writes the gate t, (N, P).

    First the gate of BG positions, one a thread, then their values of a share of the channels in tiles (BC, BP).
    """
    wait_for_the_kernel_before()
    T: tl.constexpr = u.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if tl.float64 == T else tl.float32
    part = tl.program_id(0)
    n = (part // tiles).to(tl.int64)
    start = part % tiles * BG
    if t is not None:
        t += n * P
        q = start + tl.arange(0, BG)
        value = spatial_gate(maps, kernel, z, z_stats, norm_weight, norm_bias, norm_mean, norm_var, scale, n, q, P,
                             height, width, eps, K, PLANES, INNER, HARD)  # fmt: skip
        tl.store(t + q, value, mask=q < P)  # programs with other channels write the same numbers
        tl.debug_barrier()
    if s is not None:
        s += n * C
    u += n * C * P
    y += n * C * P
    if residual is not None:
        residual += n * C * P
    first = tl.program_id(1) * per_program
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        known = None if WHOLE else c < C
        alpha, beta = affine(norm, c, known, C, ACC)
        if s is not None:
            factor = cast(tl.load(s + c, mask=known), T)
        for p0 in range(start, tl.minimum(start + BG, P), BP):
            p = p0 + tl.arange(0, BP)
            inside = (p < P)[None, :] if WHOLE else (p < P)[None, :] & (c < C)[:, None]
            wanted = None if LAST and WHOLE else inside
            # The last position again instead of a mask, where that leaves the vectors whole.
            at = tile_offsets(c, tl.minimum(p, P - 1) if LAST else p, C, P, LAST)
            x = tl.load(u + at, mask=wanted, eviction_policy="evict_first")
            x = normalised(x, alpha, beta, norm)
            if s is not None:
                x = times(x, factor[:, None])
            if t is not None:
                x = times(x, cast(tl.load(t + p, mask=p < P), T)[None, :])
            if residual is not None:
                x = plus(x, tl.load(residual + at, mask=wanted, eviction_policy="evict_first"))
                if RELU:
                    x = relu(x)
            tl.store(y + at, x, mask=inside)
