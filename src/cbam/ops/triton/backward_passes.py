"""Backward: the kernels that pass over the map, which read it twice, the gradient twice, and write dx.

The small kernels between them are in `backward_kernels.py`. With x1 = s x and y = t x1, g = dL/dy (formulas as in
`csrc/backward.cpp`):

- gate_grads (g, x): dt_p = sum_c g s x, G_c = sum_p g t x
- logit_grads, convolution_grads: through the spatial gate, its norm and convolution; gradients of its two maps
- weighted (x): B_c = sum_p (dmean_p + [c = argmax_p] dmax_p) x
- channel_sums, hidden_grads, pooled_grads, weight_grads: ds = G + B, and backward through the MLP
- input_grad (g): dx = s (g t + dmean + [c = argmax_p] dmax) + davg + [p = argmax_c] dpeak

Sums over samples and tiles are written as partial sums that a later kernel adds in order: no atomics, so the same bits
on every run.
"""

import triton
import triton.language as tl

from cbam.ops.triton.common import after_norm, cast, stored, tile_offsets


@triton.jit
def gate_grads(u, weight, bias, mean, invstd, grad, out, masked, s, t, dt, sums, samples, C, P, tiles, per_program,
               SUMS: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Partial sums: dt (N, parts, P), and per channel (N, tiles, SUMS, C) g t u, with a norm in front also g t and u.

    `out` is the output of a ReLU: the gradient is zero where it is not positive, and is written to `masked`.
    """
    ACC: tl.constexpr = sums.dtype.element_ty if sums is not None else dt.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    first = tl.program_id(1) * per_program
    if t is not None:
        spatial_gate = stored(tl.load(t + n * P + p, mask=p < P, other=0.0), T)
    total = tl.zeros((BP,), ACC)
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = n * C * P + tile_offsets(c, p, C, P, LAST)
        g = tl.load(grad + at, mask=inside, other=0.0, eviction_policy="evict_last").to(ACC)
        if out is not None:
            o = tl.load(out + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
            g = tl.where(o <= 0, 0.0, g)
            tl.store(masked + at, g.to(T), mask=inside)
        value = tl.load(u + at, mask=inside, other=0.0, eviction_policy="evict_last").to(ACC)
        if dt is not None:
            x = tl.where(inside, after_norm(value, weight, bias, mean, invstd, c, c < C, T), 0.0)
            if s is not None:
                x = x * stored(tl.load(s + n * C + c, mask=c < C, other=0.0), T)[:, None]
            total += tl.sum(g * x, 0)
        if SUMS > 0:
            if t is not None:
                g = g * spatial_gate[None, :]
            to = sums + ((n * tiles + part % tiles) * SUMS) * C + c
            tl.store(to, tl.sum(g * value, 1), mask=c < C)
            if SUMS == 3:
                tl.store(to + C, tl.sum(g, 1), mask=c < C)
                tl.store(to + 2 * C, tl.sum(value, 1), mask=c < C)
    if dt is not None:
        tl.store(dt + (n * tl.num_programs(1) + tl.program_id(1)) * P + p, total, mask=p < P)


@triton.jit
def weighted(u, dmaps, argmax, sums, C, P, splits, per_split, SUMS: tl.constexpr, AVERAGE: tl.constexpr,
             MAXIMUM: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Partial sums per channel of u weighted by the maps' gradients, and with SUMS = 2 of the weights themselves.

    `sums` is (N, splits, SUMS, C).
    """
    ACC: tl.constexpr = sums.dtype.element_ty
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    part = tl.program_id(0)
    n = (part // splits).to(tl.int64)
    start = part % splits * per_split
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    dmaps += n * PLANES * P
    total = tl.zeros((BC, BP), ACC)
    weights = tl.zeros((BC, BP), ACC)
    for p0 in range(start, tl.minimum(start + per_split, P), BP):
        p = p0 + tl.arange(0, BP)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = n * C * P + tile_offsets(c, p, C, P, LAST)
        value = tl.load(u + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
        share = tl.zeros((BC, BP), ACC)
        if AVERAGE >= 0:
            share += tl.load(dmaps + AVERAGE * P + p, mask=p < P, other=0.0)[None, :]
        if MAXIMUM >= 0:
            peak = tl.load(dmaps + MAXIMUM * P + p, mask=p < P, other=0.0)
            matches = c[:, None] == tl.load(argmax + n * P + p, mask=p < P, other=-1)[None, :]
            share += tl.where(matches, peak[None, :], 0.0)
        total += share * value
        if SUMS == 2:
            weights += share
    to = sums + ((n * splits + part % splits) * SUMS) * C + c
    tl.store(to, tl.sum(total, 1), mask=c < C)
    if SUMS == 2:
        tl.store(to + C, tl.sum(weights, 1), mask=c < C)


@triton.jit
def input_grad(u, weight, invstd, grad, s, t, dmaps, channel_argmax, dpooled, position_argmax, k1, k0, dx,
               samples, C, P, tiles, per_program, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr,
               MEAN: tl.constexpr, PEAK: tl.constexpr, LAST: tl.constexpr,
               BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """dx from the gradient and the gates; AVERAGE and MAXIMUM number the maps, MEAN and PEAK the pooled rows."""
    ACC: tl.constexpr = tl.float64 if u.dtype.element_ty == tl.float64 else tl.float32
    T: tl.constexpr = u.dtype.element_ty
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    ROWS: tl.constexpr = (MEAN >= 0) + (PEAK >= 0)
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    if t is not None:
        spatial_gate = stored(tl.load(t + n * P + p, mask=p < P, other=0.0), T)
    if AVERAGE >= 0:
        dmean = tl.load(dmaps + (n * PLANES + AVERAGE) * P + p, mask=p < P, other=0.0)
    if MAXIMUM >= 0:
        dmax = tl.load(dmaps + (n * PLANES + MAXIMUM) * P + p, mask=p < P, other=0.0)
        which = tl.load(channel_argmax + n * P + p, mask=p < P, other=-1)
    first = tl.program_id(1) * per_program
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = n * C * P + tile_offsets(c, p, C, P, LAST)
        d = tl.load(grad + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
        if t is not None:
            d = d * spatial_gate[None, :]
        if AVERAGE >= 0:
            d += dmean[None, :]
        if MAXIMUM >= 0:
            d += tl.where(c[:, None] == which[None, :], dmax[None, :], 0.0)
        if s is not None:
            d = d * stored(tl.load(s + n * C + c, mask=c < C, other=0.0), T)[:, None]
        if MEAN >= 0:
            d += tl.load(dpooled + (n * ROWS + MEAN) * C + c, mask=c < C, other=0.0)[:, None]
        if PEAK >= 0:
            peak = tl.load(dpooled + (n * ROWS + PEAK) * C + c, mask=c < C, other=0.0)
            index = tl.load(position_argmax + n * C + c, mask=c < C, other=-1)
            d += tl.where(p[None, :] == index[:, None], peak[:, None], 0.0)
        if invstd is not None:
            alpha = tl.load(invstd + c, mask=c < C, other=0.0)
            if weight is not None:
                alpha = alpha * tl.load(weight + c, mask=c < C, other=0.0)
            d = d * alpha[:, None]
            if k1 is not None:
                value = tl.load(u + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
                d += value * tl.load(k1 + c, mask=c < C, other=0.0)[:, None]
                d += tl.load(k0 + c, mask=c < C, other=0.0)[:, None]
        tl.store(dx + at, cast(d, T), mask=inside)
