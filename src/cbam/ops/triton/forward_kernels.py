"""The small steps between the passes over the map: the MLP, and the statistics of the spatial gate's norm."""

import triton
import triton.language as tl

from cbam.ops.triton.common import (
    convolved,
    divided,
    first_largest,
    gate,
    larger,
    product,
    wait_for_the_kernel_before,
)


@triton.jit
def pooled_tile(sums, maxima, firsts, n, c, inside, C, P, splits, ACC: tl.constexpr,
                AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
                BS: tl.constexpr):  # fmt: skip
    """The shares of `pool`, BS at a time, as average, maximum and its place, (BN, BC) each."""
    total = tl.zeros((BN, BC), ACC)
    best = tl.full((BN, BC), float("-inf"), ACC)
    place = tl.zeros((BN, BC), tl.int32)
    for i0 in range(0, splits, BS):
        i = i0 + tl.arange(0, BS)
        at = (n.to(tl.int64)[:, None, None] * splits + i[None, :, None]) * C + c[None, None, :]
        known = inside[:, None, :] & (i < splits)[None, :, None]
        if AVERAGE:
            total += tl.sum(tl.load(sums + at, mask=known, other=0.0), 1)
        if MAXIMUM:
            value = tl.load(maxima + at, mask=known, other=float("-inf"))
            index = i[None, :, None]
            if firsts is not None:
                index = tl.load(firsts + at, mask=known, other=2147483647)
            found, first = first_largest(value, index, 1)  # later shares have later places
            take = larger(found, best) | (i0 == 0)
            best = tl.where(take, found, best)
            place = tl.where(take, first, place)
    return divided(total, tl.full([1, 1], 0, ACC) + P), best, place


@triton.jit
def hidden(sums, maxima, firsts, w0, b0, pooled, argmax, out, arrived, w1, b1, scale, s,
           samples, C, P, width, splits, AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, HARD: tl.constexpr,
           BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
           GATES: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """relu(W0 pooled + b0), (N, rows, h); puts the shares of `pool` together: `pooled` (N, rows, C), `argmax` (N, C).

    BN = 1 is for few samples: then many programs each have a sample and BH hidden units. With `arrived`, zero at first,
    the last program of some samples computes their gates too, GATES channels by UNITS hidden units at a time.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = sums.dtype.element_ty
    ROWS: tl.constexpr = AVERAGE + MAXIMUM
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    # With one sample the products are summed over the channels at the end.
    LANES: tl.constexpr = BC if BN == 1 else 1
    of_average = tl.zeros((BN, BH, LANES), ACC)
    of_maximum = tl.zeros((BN, BH, LANES), ACC)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        inside = (n < samples)[:, None] & (c < C)[None, :]
        average, best, place = pooled_tile(sums, maxima, firsts, n, c, inside, C, P, splits, ACC, AVERAGE, MAXIMUM,
                                           BN, BC, BS)  # fmt: skip
        if tl.program_id(1) == 0:
            to = n.to(tl.int64)[:, None] * ROWS * C + c[None, :]
            if AVERAGE:
                tl.store(pooled + to, average, mask=inside)
            if MAXIMUM:
                tl.store(pooled + to + AVERAGE * C, best, mask=inside)
                if firsts is not None:
                    tl.store(argmax + n.to(tl.int64)[:, None] * C + c[None, :], place, mask=inside)
        w = tl.load(
            w0 + h[:, None] * C + c[None, :], mask=(h < width)[:, None] & (c < C)[None, :], other=0.0
        ).to(ACC)
        if AVERAGE:
            of_average += layer(tl.where(inside, average, 0.0), w)
        if MAXIMUM:
            of_maximum += layer(tl.where(inside, best, 0.0), w)
    shift = tl.zeros((BH,), ACC)
    if b0 is not None:
        shift = tl.load(b0 + h, mask=h < width, other=0.0).to(ACC)
    inside = (n < samples)[:, None] & (h < width)[None, :]
    to = n.to(tl.int64)[:, None] * ROWS * width + h[None, :]
    if AVERAGE:
        value = tl.sum(of_average, 2) + shift[None, :]
        tl.store(out + to, tl.where(value < 0, 0.0, value), mask=inside)
    if MAXIMUM:
        value = tl.sum(of_maximum, 2) + shift[None, :]
        tl.store(out + to + AVERAGE * width, tl.where(value < 0, 0.0, value), mask=inside)
    if arrived is not None:
        tl.debug_barrier()
        if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == tl.num_programs(1) - 1:
            for c0 in range(0, C, GATES):
                channel_gate_of(tl.program_id(0) * BN, c0, out, w1, b1, scale, s, samples, C, width, ROWS, HARD, BN,
                                GATES, UNITS)  # fmt: skip


@triton.jit
def layer(x, w):
    """x (BN, I) times the transpose of w (O, I), as (BN, O, 1); for one sample the products alone, (1, O, I)."""
    # Two branches, of which only one is compiled: their shapes differ.
    if x.shape[0] == 1:  # noqa: SIM108
        found = x[:, None, :] * w[None, :, :]
    else:
        found = product(x, tl.trans(w))[:, :, None]
    return found


@triton.jit
def channel_gate(hidden, w1, b1, scale, s, samples, C, width, ROWS: tl.constexpr, HARD: tl.constexpr,
                 BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """s = gate(W1 (sum of the hidden rows) + rows b1), (N, C): the second layer is linear, so it sees the sum."""
    wait_for_the_kernel_before()
    channel_gate_of(tl.program_id(0) * BN, tl.program_id(1) * BC, hidden, w1, b1, scale, s, samples, C, width, ROWS,
                    HARD, BN, BC, BH)  # fmt: skip


@triton.jit
def channel_gate_of(n0, c0, hidden, w1, b1, scale, s, samples, C, width, ROWS: tl.constexpr, HARD: tl.constexpr,
                    BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """The same for BN samples from n0 on and BC channels from c0 on."""
    ACC: tl.constexpr = s.dtype.element_ty
    n = n0 + tl.arange(0, BN)
    c = c0 + tl.arange(0, BC)
    LANES: tl.constexpr = BH if BN == 1 else 1
    z = tl.zeros((BN, BC, LANES), ACC)
    for h0 in range(0, width, BH):
        h = h0 + tl.arange(0, BH)
        inside = (n < samples)[:, None] & (h < width)[None, :]
        row = hidden + n.to(tl.int64)[:, None] * ROWS * width + h[None, :]
        total = tl.load(row, mask=inside, other=0.0)
        if ROWS == 2:
            total += tl.load(row + width, mask=inside, other=0.0)
        w = tl.load(
            w1 + c[:, None] * width + h[None, :], mask=(c < C)[:, None] & (h < width)[None, :], other=0.0
        )
        z += layer(total, w.to(ACC))
    logit = tl.sum(z, 2)
    if b1 is not None:
        logit += ROWS * tl.load(b1 + c, mask=c < C, other=0.0).to(ACC)[None, :]
    inside = (n < samples)[:, None] & (c < C)[None, :]
    tl.store(s + n.to(tl.int64)[:, None] * C + c[None, :], gate(logit, scale, HARD), mask=inside)


@triton.jit
def logits(maps, kernel, z, parts, P, height, width, tiles, K: tl.constexpr, PLANES: tl.constexpr,
           INNER: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """The convolution of all positions, (N, P), and of every tile its count, mean and sum of squared deviations."""
    wait_for_the_kernel_before()
    part = tl.program_id(0)
    n = (part // tiles).to(tl.int64)
    p = part % tiles * BP + tl.arange(0, BP)
    inside = p < P
    value = convolved(maps + n * PLANES * P, kernel, p, inside, height, width, K, PLANES, INNER)
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
    wait_for_the_kernel_before()
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
