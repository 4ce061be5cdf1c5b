"""Forward: three kernels that read the map, the last of which writes y, and the small kernels between them.

pool -> hidden -> channel_gate -> squeeze -> (logits -> statistics) -> apply. Each pass over the map takes
the samples in the reverse order of the one before, to begin with what is still in the second-level cache.
"""

import triton
import triton.language as tl

from cbam.ops.triton.common import (
    after_norm,
    cast,
    convolved,
    divided,
    first_largest,
    gate,
    larger,
    stored,
    tile_offsets,
)


@triton.jit
def pool(u, weight, bias, mean, invstd, sums, maxima, firsts, C, P, splits, per_split,
         AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, LAST: tl.constexpr,
         BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Sum, maximum and its first index over a part of the positions: (N, splits, C) each; `firsts` may be None."""
    ACC: tl.constexpr = sums.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    part = tl.program_id(0)
    n = (part // splits).to(tl.int64)
    start = part % splits * per_split
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    lane = tl.arange(0, BP)
    u += n * C * P
    total = tl.zeros((BC, BP), ACC)
    top = tl.full((BC, BP), float("-inf"), ACC)
    at = tl.full((BC, BP), 0, tl.int32) + start
    for p0 in range(start, tl.minimum(start + per_split, P), BP):
        p = p0 + lane
        inside = (c < C)[:, None] & (p < P)[None, :]
        value = tl.load(
            u + tile_offsets(c, p, C, P, LAST), mask=inside, other=0.0, eviction_policy="evict_last"
        )
        x = after_norm(value.to(ACC), weight, bias, mean, invstd, c, c < C, T)
        if AVERAGE:
            total += tl.where(inside, x, 0.0)
        if MAXIMUM:
            take = inside & larger(x, top)
            top = tl.where(take, x, top)
            if firsts is not None:
                at = tl.where(take, p0, at)
    row = (n * splits + part % splits) * C + c
    if AVERAGE:
        tl.store(sums + row, tl.sum(total, 1), mask=c < C)
    if MAXIMUM:
        best, first = first_largest(top, at + lane[None, :], 1)
        tl.store(maxima + row, best, mask=c < C)
        if firsts is not None:
            tl.store(firsts + row, first, mask=c < C)


@triton.jit
def hidden(sums, maxima, firsts, w0, b0, pooled, argmax, out, samples, C, P, width, splits,
           AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr,
           BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """relu(W0 pooled + b0), (N, rows, h); combines the results of `pool`: `pooled` (N, rows, C), `argmax` (N, C)."""
    ACC: tl.constexpr = sums.dtype.element_ty
    ROWS: tl.constexpr = AVERAGE + MAXIMUM
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    of_average = tl.zeros((BN, BH), ACC)
    of_maximum = tl.zeros((BN, BH), ACC)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        inside = (n < samples)[:, None] & (c < C)[None, :]
        at = n.to(tl.int64)[:, None] * splits * C + c[None, :]
        to = n.to(tl.int64)[:, None] * ROWS * C + c[None, :]
        w = tl.load(w0 + h[None, :] * C + c[:, None], mask=(h < width)[None, :] & (c < C)[:, None], other=0.0)
        if AVERAGE:
            total = tl.zeros((BN, BC), ACC)
            for i in range(splits):
                total += tl.load(sums + at + i * C, mask=inside, other=0.0)
            average = divided(total, tl.full([1, 1], 0, ACC) + P)
            if tl.program_id(1) == 0:
                tl.store(pooled + to, average, mask=inside)
            of_average += product(average, w)
        if MAXIMUM:
            best = tl.load(maxima + at, mask=inside, other=0.0)
            index = tl.zeros((BN, BC), tl.int32)
            if firsts is not None:
                index = tl.load(firsts + at, mask=inside, other=0)
            for i in range(1, splits):
                value = tl.load(maxima + at + i * C, mask=inside, other=0.0)
                take = larger(value, best)
                best = tl.where(take, value, best)
                if firsts is not None:
                    index = tl.where(take, tl.load(firsts + at + i * C, mask=inside, other=0), index)
            if tl.program_id(1) == 0:
                tl.store(pooled + to + AVERAGE * C, best, mask=inside)
                if firsts is not None:
                    tl.store(argmax + n.to(tl.int64)[:, None] * C + c[None, :], index, mask=inside)
            of_maximum += product(best, w)
    shift = tl.zeros((BH,), ACC)
    if b0 is not None:
        shift = tl.load(b0 + h, mask=h < width, other=0.0)
    inside = (n < samples)[:, None] & (h < width)[None, :]
    to = n.to(tl.int64)[:, None] * ROWS * width + h[None, :]
    if AVERAGE:
        value = of_average + shift[None, :]
        tl.store(out + to, tl.where(value < 0, 0.0, value), mask=inside)
    if MAXIMUM:
        value = of_maximum + shift[None, :]
        tl.store(out + to + AVERAGE * width, tl.where(value < 0, 0.0, value), mask=inside)


@triton.jit
def product(a, b):
    """The matrix product in full precision."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@triton.jit
def channel_gate(hidden, w1, b1, scale, s, samples, C, width, ROWS: tl.constexpr, HARD: tl.constexpr,
                 BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """s = gate(W1 (sum of the hidden rows) + rows b1), (N, C): the second layer is linear, so it sees the sum."""
    ACC: tl.constexpr = s.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    z = tl.zeros((BN, BC), ACC)
    for h0 in range(0, width, BH):
        h = h0 + tl.arange(0, BH)
        inside = (n < samples)[:, None] & (h < width)[None, :]
        row = hidden + n.to(tl.int64)[:, None] * ROWS * width + h[None, :]
        total = tl.load(row, mask=inside, other=0.0)
        if ROWS == 2:
            total += tl.load(row + width, mask=inside, other=0.0)
        w = tl.load(
            w1 + c[None, :] * width + h[:, None], mask=(c < C)[None, :] & (h < width)[:, None], other=0.0
        )
        z += product(total, w)
    if b1 is not None:
        z += ROWS * tl.load(b1 + c, mask=c < C, other=0.0)[None, :]
    inside = (n < samples)[:, None] & (c < C)[None, :]
    tl.store(s + n.to(tl.int64)[:, None] * C + c[None, :], gate(z, scale, HARD), mask=inside)


@triton.jit
def squeeze(u, weight, bias, mean, invstd, s, maps, argmax, samples, C, P, tiles,
            AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, LAST: tl.constexpr,
            BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Mean and maximum over channels of s x: planes number AVERAGE and MAXIMUM (-1: none) of `maps` (N, planes, P)."""
    ACC: tl.constexpr = maps.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    PLANES: tl.constexpr = (AVERAGE >= 0) + (MAXIMUM >= 0)
    part = tl.program_id(0)
    n = samples - 1 - (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    lane = tl.arange(0, BC)
    u += n * C * P
    total = tl.zeros((BC, BP), ACC)
    top = tl.full((BC, BP), float("-inf"), ACC)
    at = tl.zeros((BC, BP), tl.int32)
    for c0 in range(0, C, BC):
        c = c0 + lane
        inside = (c < C)[:, None] & (p < P)[None, :]
        value = tl.load(
            u + tile_offsets(c, p, C, P, LAST), mask=inside, other=0.0, eviction_policy="evict_last"
        )
        x = after_norm(value.to(ACC), weight, bias, mean, invstd, c, c < C, T)
        if s is not None:
            factor = stored(tl.load(s + n * C + c, mask=c < C, other=0.0), T)
            x = stored(x * factor[:, None], T)
        if AVERAGE >= 0:
            total += tl.where(inside, x, 0.0)
        if MAXIMUM >= 0:
            take = inside & larger(x, top)
            top = tl.where(take, x, top)
            if argmax is not None:
                at = tl.where(take, c0, at)
    maps += n * PLANES * P
    if AVERAGE >= 0:
        average = divided(tl.sum(total, 0), tl.full([1], 0, ACC) + C)
        tl.store(maps + AVERAGE * P + p, average, mask=p < P)
    if MAXIMUM >= 0:
        best, first = first_largest(top, at + lane[:, None], 0)
        tl.store(maps + MAXIMUM * P + p, best, mask=p < P)
        if argmax is not None:
            tl.store(argmax + n * P + p, first, mask=p < P)


@triton.jit
def logits(maps, kernel, z, parts, P, height, width, tiles, K: tl.constexpr, PLANES: tl.constexpr,
           TAPS: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """The convolution at all positions, (N, P), and each tile's count, mean and sum of squared deviations."""
    part = tl.program_id(0)
    n = (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    inside = p < P
    value = convolved(maps + n * PLANES * P, kernel, p, inside, height, width, K, PLANES, TAPS)
    tl.store(z + n * P + p, value, mask=inside)
    count = tl.minimum(P - part % tiles * BP, BP).to(value.dtype)
    mean = tl.sum(tl.where(inside, value, 0.0), 0) / count
    away = tl.where(inside, value - mean, 0.0)
    tl.store(parts + part * 3, count)
    tl.store(parts + part * 3 + 1, mean)
    tl.store(parts + part * 3 + 2, tl.sum(away * away, 0))


@triton.jit
def statistics(parts, kept, stats, count, eps, BLOCK: tl.constexpr):
    """Put the tiles' statistics together: kept = [mean, 1 / standard deviation], stats = [mean, variance]."""
    ACC: tl.constexpr = kept.dtype.element_ty
    weighted = tl.zeros((BLOCK,), ACC)
    values = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        own = tl.load(parts + i * 3, mask=i < count, other=0.0)
        values += own
        weighted += own * tl.load(parts + i * 3 + 1, mask=i < count, other=0.0)
    number = tl.sum(values, 0)
    mean = tl.sum(weighted, 0) / number
    squares = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        own = tl.load(parts + i * 3, mask=i < count, other=0.0)
        away = tl.load(parts + i * 3 + 1, mask=i < count, other=0.0) - mean
        squares += tl.load(parts + i * 3 + 2, mask=i < count, other=0.0) + tl.where(
            i < count, own * away * away, 0.0
        )
    variance = tl.sum(squares, 0) / number
    tl.store(kept, mean)
    tl.store(kept + 1, 1.0 / tl.sqrt(variance + eps))
    tl.store(stats, mean)
    tl.store(stats + 1, variance)


@triton.jit
def apply(u, weight, bias, mean, invstd, s, maps, kernel, z, z_stats, norm_weight, norm_bias, norm_mean, norm_var,
          scale, t, residual, y, C, P, height, width, tiles, per_program, eps,
          K: tl.constexpr, PLANES: tl.constexpr, HARD: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr,
          TAPS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """y = s x t, rounded after each product; with a residual y = relu(s x t + residual). Writes the gate t, (N, P)."""
    ACC: tl.constexpr = s.dtype.element_ty if s is not None else t.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    part = tl.program_id(0)
    n = (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    if t is not None:
        if z is not None:
            logit = (tl.load(z + n * P + p, mask=p < P, other=0.0) - tl.load(z_stats)) * tl.load(z_stats + 1)
        else:
            logit = convolved(maps + n * PLANES * P, kernel, p, p < P, height, width, K, PLANES, TAPS)
            if norm_mean is not None:
                logit = (logit - tl.load(norm_mean)) * (1.0 / tl.sqrt(tl.load(norm_var) + eps))
        if norm_weight is not None:
            logit = logit * tl.load(norm_weight)
        if norm_bias is not None:
            logit = logit + tl.load(norm_bias)
        spatial_gate = gate(logit, scale, HARD)
        if tl.program_id(1) == 0:
            tl.store(t + n * P + p, spatial_gate, mask=p < P)
        spatial_gate = stored(spatial_gate, T)
    first = tl.program_id(1) * per_program
    for c0 in range(first, tl.minimum(first + per_program, C), BC):
        c = c0 + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = n * C * P + tile_offsets(c, p, C, P, LAST)
        x = tl.load(u + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
        x = after_norm(x, weight, bias, mean, invstd, c, c < C, T)
        if s is not None:
            factor = stored(tl.load(s + n * C + c, mask=c < C, other=0.0), T)
            x = stored(x * factor[:, None], T)
        if t is not None:
            x = stored(x * spatial_gate[None, :], T)
        if residual is not None:
            x = stored(
                x + tl.load(residual + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC), T
            )
            if RELU:
                x = tl.where(x < 0, 0.0, x)
        tl.store(y + at, cast(x, T), mask=inside)
