"""Backward: the kernels that pass over the map, which read it twice, the gradient twice, and write dx.

The small kernels between them are in `backward_kernels.py`. With x1 = s x and y = t x1, g = dL/dy (formulas as in
`csrc/backward.cpp`):

- gate_grads (g, x): dt_p = sum_c g s x, G_c = sum_p g t x; dz_p = dt_p gate'(t_p)
- convolution_grads: backward through the convolution; gradients of its two maps
- weighted (x): B_c = sum_p (dmean_p + [c = argmax_p] dmax_p) x; ds = G + B
- hidden_grads, pooled_grads, parameter_grads: backward through the MLP
- input_grad (g): dx = s (g t + dmean + [c = argmax_p] dmax) + davg + [p = argmax_c] dpeak

Sums over samples and tiles are written as partial sums that a later program adds in order: no atomic sums, so the same
bits on every run.
"""

import triton
import triton.language as tl

from cbam.ops.triton.backward_kernels import channel_sums_of, hidden_grads_of, pooled_grads_of
from cbam.ops.triton.common import (
    affine,
    cast,
    fold,
    loaded,
    logit_factor,
    normalised,
    stored,
    through_gate,
    tile_offsets,
    wait_for_the_kernel_before,
    widened,
)


@triton.jit
def gate_grads(u, weight, bias, mean, var, eps, norm, grad, out, masked, s, t, scale, logit_var, logit_eps, dt, sums,
               samples, C, P,
               tiles, per_program, BATCH: tl.constexpr, SUMS: tl.constexpr, LOGITS: tl.constexpr, HARD: tl.constexpr,
               LAST: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr,
               BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Partial sums: dt (N, parts, P), and per channel (N, tiles, SUMS, C) g t u, with a norm in front also g t and u.

    `out` is the output of a ReLU: the gradient is zero where it is not positive, and is written to `masked`.
    A program has STEPS tiles of positions. LOGITS: it has all channels, and `dt` becomes the gradient of the logits.
    Folds the norm in front, if there is one. WHOLE: there is nothing beyond the border of the map in any tile.
    """
    wait_for_the_kernel_before()
    T: tl.constexpr = u.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if tl.float64 == T else tl.float32
    GROUPS: tl.constexpr = BC // GROUP
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    start = part % tiles * (BP * STEPS)
    first = tl.program_id(1) * per_program
    u += n * C * P
    grad += n * C * P
    if out is not None:
        out += n * C * P
        masked += n * C * P
    if s is not None:
        s += n * C
    if t is not None:
        t += n * P
    if norm is not None:
        fold(weight, bias, mean, var, eps, norm, first, tl.minimum(first + per_program, C), C, BATCH, 128)
    totals = ()
    for _ in tl.static_range(STEPS):
        totals = totals + (tl.zeros((GROUPS, BP), ACC),)
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        known = None if WHOLE else c < C
        alpha, beta = affine(norm, c, known, C, ACC)
        if s is not None:
            factor = stored(loaded(s + c, known, ""), T)[:, None]
        of_u = tl.zeros((BC, BP), ACC)
        of_one = tl.zeros((BC, BP), ACC)
        us = tl.zeros((BC, BP), ACC)
        added = ()
        for i in tl.static_range(STEPS):
            p = start + i * BP + tl.arange(0, BP)
            inside = None if WHOLE else (c < C)[:, None] & (p < P)[None, :]
            at = tile_offsets(c, p, C, P, LAST)
            g = loaded(grad + at, inside, "evict_last")
            if out is not None:
                o = loaded(out + at, inside, "evict_first")
                g = tl.where(o <= 0, tl.zeros_like(g), g)
                tl.store(masked + at, g, mask=inside)
            g = widened(g, ACC)
            value = loaded(u + at, inside, "evict_last")
            wide = widened(value, ACC)
            if dt is not None or norm is None:
                x = g * widened(normalised(value, alpha, beta, norm), ACC)
                both = x
            if dt is not None:
                if s is not None:
                    x = x * factor
                if norm is not None and not WHOLE:
                    x = tl.where(inside, x, 0.0)
                added = added + (totals[i] + tl.sum(tl.reshape(x, (GROUPS, GROUP, BP)), 1),)
            if SUMS > 0:
                at_position = tl.full((1, BP), 1.0, ACC)
                if t is not None:
                    at_position = stored(tl.load(t + p, mask=p < P, other=0.0), T)[None, :]
                at_position = tl.broadcast_to(at_position, (BC, BP))
                if norm is None:
                    of_u = tl.fma(both, at_position, of_u)
                else:
                    g = g * at_position
                    of_u = tl.fma(g, wide, of_u)
                    of_one += g
                    us += wide
        if dt is not None:
            totals = added
        if SUMS > 0:
            to = sums + ((n * tiles + part % tiles) * SUMS) * C + c
            tl.store(to, tl.sum(of_u, 1), mask=c < C)
            if SUMS == 3:
                tl.store(to + C, tl.sum(of_one, 1), mask=c < C)
                tl.store(to + 2 * C, tl.sum(us, 1), mask=c < C)
    if dt is not None:
        for i in tl.static_range(STEPS):
            p = start + i * BP + tl.arange(0, BP)
            d = tl.sum(totals[i], 0)
            if LOGITS:
                d = through_gate(d, tl.load(t + p, mask=p < P, other=0.0), scale, HARD)
                if logit_var is not None:
                    d = d * logit_factor(logit_var, logit_eps, ACC)
            tl.store(dt + (n * tl.num_programs(1) + tl.program_id(1)) * P + p, d, mask=p < P)


@triton.jit
def weighted(u, dmaps, argmax, sums, arrived, gate_sums, tiles, s, scale, norm, da, found,
             w0, w1, hidden, dhidden, dpooled, position_argmax, input_sums, width,
             C, P, splits, per_split, counters, SUMS: tl.constexpr, HARD: tl.constexpr, AVERAGE: tl.constexpr,
             MAXIMUM: tl.constexpr, MEAN: tl.constexpr, PEAK: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr,
             GATES: tl.constexpr, UNITS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Partial sums per channel of u weighted by the maps' gradients, and with SUMS = 2 of the weights themselves.

    `sums` is (N, splits, SUMS, C). Of the programs with the same sample and channels, the one that comes last adds
    their sums and those of `gate_grads` in order, as `channel_sums` does; `arrived` (N, counters) counts them,
    from zero to zero. With `dhidden`, the last of those with the same sample goes backward through the MLP, as
    `hidden_grads` and `pooled_grads` do; MEAN and PEAK say whether there are such rows.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = sums.dtype.element_ty
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    part = tl.program_id(0)
    n = (part // splits).to(tl.int64)
    start = part % splits * per_split
    end = tl.minimum(start + per_split, P)
    full = start + (end - start) // BP * BP
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    lane = tl.arange(0, BP)
    offsets = tile_offsets(c, lane, C, P, LAST)
    step = C if LAST else 1
    u += n * C * P
    maps = dmaps + n * PLANES * P
    total = tl.zeros((BC, BP), ACC)
    weights = tl.zeros((BC, BP), ACC)
    for p0 in range(start, full, BP):
        known = None if WHOLE else (c < C)[:, None]
        value = tl.load(u + (offsets + p0 * step), mask=known, eviction_policy="evict_first")
        value = widened(value, ACC)
        share = through_maps(maps, argmax, n, c, p0 + lane, None, P, BC, AVERAGE, MAXIMUM, ACC)
        total = tl.fma(share, value, total)
        if SUMS == 2:
            weights += share
    if full < end:
        p = full + lane
        inside = (c < C)[:, None] & (p < end)[None, :]
        value = tl.load(u + (offsets + full * step), mask=inside, other=0.0).to(ACC)
        share = through_maps(maps, argmax, n, c, p, p < end, P, BC, AVERAGE, MAXIMUM, ACC)
        total = tl.fma(share, value, total)
        if SUMS == 2:
            weights += share
    to = sums + ((n * splits + part % splits) * SUMS) * C + c
    tl.store(to, tl.sum(total, 1), mask=c < C)
    if SUMS == 2:
        tl.store(to + C, tl.sum(weights, 1), mask=c < C)
    tl.debug_barrier()
    counter = arrived + n * counters + tl.program_id(1)
    if tl.atomic_add(counter, 1, sem="acq_rel") == splits - 1:
        channel_sums_of(gate_sums, tiles, sums, splits, s, scale, norm, da, found, n, c, C,
                        3 if SUMS == 2 else 1, SUMS, HARD, BC)  # fmt: skip
        tl.store(counter, 0)
        if dhidden is not None:
            tl.debug_barrier()
            counter = arrived + n * counters + tl.num_programs(1)
            if tl.atomic_add(counter, 1, sem="acq_rel") == tl.num_programs(1) - 1:
                for h0 in range(0, width, UNITS):
                    hidden_grads_of(n, h0, da, w1, hidden, dhidden, n + 1, C, width, MEAN + PEAK, 1, UNITS,
                                    GATES)  # fmt: skip
                tl.debug_barrier()
                for c0 in range(0, C, GATES):
                    pooled_grads_of(n, c0, dhidden, w0, dpooled, s, found, u - n * C * P, position_argmax, input_sums,
                                    n + 1, C, P, width, MEAN, PEAK, LAST, 1, GATES, UNITS)  # fmt: skip
                tl.store(counter, 0)


@triton.jit
def through_maps(maps, argmax, n, c, p, inside, P, BC: tl.constexpr, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr,
                 ACC: tl.constexpr):  # fmt: skip
    """What comes back to each value of a tile from the spatial descriptor's maps: dmean_p + [c = argmax_p] dmax_p."""
    mean = tl.zeros(p.shape, ACC)
    if AVERAGE >= 0:
        mean = loaded(maps + AVERAGE * P + p, inside, "")
    if MAXIMUM >= 0:
        peak = mean + loaded(maps + MAXIMUM * P + p, inside, "")
        which = loaded(argmax + n * P + p, inside, "")  # masked positions give zero to channel 0
        share = tl.where(c[:, None] == which[None, :], peak[None, :], mean[None, :])
    else:
        share = tl.broadcast_to(mean[None, :], (BC, p.shape[0]))
    return share


@triton.jit
def input_grad(u, norm, grad, s, t, dmaps, channel_argmax, dpooled, position_argmax, k1, k0, dx,
               samples, C, P, tiles, per_program, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr,
               MEAN: tl.constexpr, PEAK: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, BG: tl.constexpr,
               BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """dx from the gradient and the gates; AVERAGE and MAXIMUM number the maps, MEAN and PEAK the pooled rows.

    A program has BG positions and a share of the channels.
    """
    wait_for_the_kernel_before()
    T: tl.constexpr = u.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if tl.float64 == T else tl.float32
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    ROWS: tl.constexpr = (MEAN >= 0) + (PEAK >= 0)
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    start = part % tiles * BG
    first = tl.program_id(1) * per_program
    u += n * C * P
    grad += n * C * P
    dx += n * C * P
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        known = None if WHOLE else c < C
        if s is not None:
            factor = stored(tl.load(s + n * C + c, mask=known), T)[:, None]
        base = tl.zeros((BC,), ACC)
        if MEAN >= 0:
            base = tl.load(dpooled + (n * ROWS + MEAN) * C + c, mask=known)
        if PEAK >= 0:
            peak = base + tl.load(dpooled + (n * ROWS + PEAK) * C + c, mask=known)
            place = tl.load(position_argmax + n * C + c, mask=known)
        if norm is not None:
            alpha = tl.load(norm + c, mask=known)
            if k1 is not None:
                slope = tl.load(k1 + c, mask=known)
                shift = tl.load(k0 + c, mask=known)
        for p0 in range(start, tl.minimum(start + BG, P), BP):
            p = p0 + tl.arange(0, BP)
            read = tl.minimum(p, P - 1) if LAST else p  # the last position again instead of a mask
            inside = (p < P)[None, :] if WHOLE else (p < P)[None, :] & (c < C)[:, None]
            wanted = None if LAST and WHOLE else inside
            at = tile_offsets(c, read, C, P, LAST)
            d = widened(tl.load(grad + at, mask=wanted, eviction_policy="evict_first"), ACC)
            if t is not None:
                value = stored(tl.load(t + n * P + p, mask=p < P), T)
                back = through_maps(dmaps + n * PLANES * P, channel_argmax, n, c, p, p < P, P, BC, AVERAGE, MAXIMUM,
                                    ACC)  # fmt: skip
                d = tl.fma(d, tl.broadcast_to(value[None, :], (BC, BP)), back)
            rest = tl.broadcast_to(base[:, None], (BC, BP))
            if PEAK >= 0:
                rest = tl.where(p[None, :] == place[:, None], peak[:, None], rest)
            if s is not None:
                d = tl.fma(d, tl.broadcast_to(factor, (BC, BP)), rest)
            if norm is not None:
                wide = tl.broadcast_to(alpha[:, None], (BC, BP))
                if k1 is not None:
                    value = widened(tl.load(u + at, mask=wanted, eviction_policy="evict_first"), ACC)
                    linear = tl.fma(value, tl.broadcast_to(slope[:, None], (BC, BP)),
                                    tl.broadcast_to(shift[:, None], (BC, BP)))  # fmt: skip
                    d = tl.fma(d, wide, linear)
                else:
                    d = d * wide
            tl.store(dx + at, cast(d, T), mask=inside)
