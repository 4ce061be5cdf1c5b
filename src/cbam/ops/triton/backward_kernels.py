"""The small kernels of backward, between its passes over the map (`backward_passes.py`, with the formulas)."""

import triton
import triton.language as tl

from cbam.ops.triton.common import (
    affine,
    convolved,
    shifted,
    stored,
    through_gate,
)
from cbam.ops.triton.forward_kernels import product


@triton.jit
def logit_grads(dt, t, scale, maps, kernel, z, z_stats, norm_weight, norm_mean, norm_var, dz, norm_sums,
                P, height, width, parts, eps, K: tl.constexpr, PLANES: tl.constexpr, HARD: tl.constexpr,
                TAPS: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """The gradient of the convolution's output, apart from the norm's batch statistics, (N, P); one program per sample.

    `norm_sums` (N, 2): sums of the gradient of the norm's output, alone and times the normalised logit.
    """
    ACC: tl.constexpr = dt.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    plain = tl.zeros((BP,), ACC)
    sloped = tl.zeros((BP,), ACC)
    for p0 in range(0, P, BP):
        p = p0 + tl.arange(0, BP)
        inside = p < P
        total = tl.zeros((BP,), ACC)
        for i in range(parts):
            total += tl.load(dt + (n * parts + i) * P + p, mask=inside, other=0.0)
        d = through_gate(total, tl.load(t + n * P + p, mask=inside, other=0.0), scale, HARD)
        if norm_sums is not None:
            if z is not None:
                normal = (tl.load(z + n * P + p, mask=inside, other=0.0) - tl.load(z_stats)) * tl.load(
                    z_stats + 1
                )
            else:
                invstd = 1.0 / tl.sqrt(tl.load(norm_var) + eps)
                normal = convolved(maps + n * PLANES * P, kernel, p, inside, height, width, K, PLANES, TAPS)
                normal = (normal - tl.load(norm_mean)) * invstd
            plain += tl.where(inside, d, 0.0)
            sloped += tl.where(inside, d * normal, 0.0)
            if z is None:
                d = d * invstd
            if norm_weight is not None:
                d = d * tl.load(norm_weight)
        tl.store(dz + n * P + p, d, mask=inside)
    if norm_sums is not None:
        tl.store(norm_sums + n * 2, tl.sum(plain, 0))
        tl.store(norm_sums + n * 2 + 1, tl.sum(sloped, 0))


@triton.jit
def through_statistics(
    dz, z, z_stats, norm_weight, norm_sums, samples, P, BLOCK: tl.constexpr, BP: tl.constexpr
):
    """dz becomes invstd (dz - mean(dz) - normal mean(dz normal)), the means over all samples."""
    ACC: tl.constexpr = dz.dtype.element_ty
    plain = tl.zeros((BLOCK,), ACC)
    sloped = tl.zeros((BLOCK,), ACC)
    for n0 in range(0, samples, BLOCK):
        n = n0 + tl.arange(0, BLOCK)
        plain += tl.load(norm_sums + n * 2, mask=n < samples, other=0.0)
        sloped += tl.load(norm_sums + n * 2 + 1, mask=n < samples, other=0.0)
    share = tl.full([1], 1.0, ACC) / (samples.to(ACC) * P)
    if norm_weight is not None:
        share = share * tl.load(norm_weight)
    invstd = tl.load(z_stats + 1)
    i = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    inside = i < samples.to(tl.int64) * P
    normal = (tl.load(z + i, mask=inside, other=0.0) - tl.load(z_stats)) * invstd
    d = tl.load(dz + i, mask=inside, other=0.0)
    d = invstd * (d - share * tl.sum(plain, 0) - normal * (share * tl.sum(sloped, 0)))
    tl.store(dz + i, d, mask=inside)


@triton.jit
def convolution_grads(dz, maps, kernel, dmaps, partial, C, P, height, width, parts, per_part, AVERAGE: tl.constexpr,
                      K: tl.constexpr, PLANES: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """Gradients of the maps (N, planes, P), the mean's divided by C; partial sums of the kernel's, one row per part."""
    ACC: tl.constexpr = dz.dtype.element_ty
    n = (tl.program_id(0) // parts).to(tl.int64)
    start = tl.program_id(0) % parts * per_part
    tap = tl.arange(0, TAPS)
    dh = tap // K - K // 2
    dw = tap % K - K // 2
    dz += n * P
    for plane in tl.static_range(PLANES):
        own = maps + (n * PLANES + plane) * P
        weight = tl.load(kernel + plane * K * K + tap, mask=tap < K * K, other=0.0)
        found = tl.zeros((TAPS,), ACC)
        for p0 in range(start, tl.minimum(start + per_part, P), BP):
            p = p0 + tl.arange(0, BP)
            inside = (tap < K * K)[:, None] & (p < P)[None, :]
            h = p // width
            w = p % width
            d = tl.load(dz + p, mask=p < P, other=0.0)
            found += tl.sum(d[None, :] * shifted(own, h, w, dh, dw, inside, height, width), 1)
            back = tl.sum(weight[:, None] * shifted(dz, h, w, -dh, -dw, inside, height, width), 0)
            if plane == AVERAGE:
                back = back / C
            tl.store(dmaps + (n * PLANES + plane) * P + p, back, mask=p < P)
        to = partial + (tl.program_id(0).to(tl.int64) * PLANES + plane) * K * K + tap
        tl.store(to, found, mask=tap < K * K)


@triton.jit
def channel_sums(first, tiles, second, splits, s, scale, weight, bias, mean, invstd, da, found, C,
                 SUMS: tl.constexpr, SECOND: tl.constexpr, HARD: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Add the partial sums: da = ds gate'(a) (N, C); with a norm in front also sums over g' u, g' and u (N, 3, C)."""
    ACC: tl.constexpr = first.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    of_u = tl.zeros((BC,), ACC)
    of_one = tl.zeros((BC,), ACC)
    us = tl.zeros((BC,), ACC)
    for i in range(tiles):
        row = first + ((n * tiles + i) * SUMS) * C + c
        of_u += tl.load(row, mask=c < C, other=0.0)
        if SUMS == 3:
            of_one += tl.load(row + C, mask=c < C, other=0.0)
            us += tl.load(row + 2 * C, mask=c < C, other=0.0)
    if SECOND > 0:
        for i in range(splits):
            row = second + ((n * splits + i) * SECOND) * C + c
            of_u += tl.load(row, mask=c < C, other=0.0)
            if SECOND == 2:
                of_one += tl.load(row + C, mask=c < C, other=0.0)
    if da is not None:
        ds = of_u
        if mean is not None:
            alpha, beta = affine(weight, bias, mean, invstd, c, c < C)
            ds = alpha * of_u + beta * of_one
        value = tl.load(s + n * C + c, mask=c < C, other=0.0)
        tl.store(da + n * C + c, through_gate(ds, value, scale, HARD), mask=c < C)
    if SUMS == 3:
        tl.store(found + n * 3 * C + c, of_u, mask=c < C)
        tl.store(found + (n * 3 + 1) * C + c, of_one, mask=c < C)
        tl.store(found + (n * 3 + 2) * C + c, us, mask=c < C)


@triton.jit
def hidden_grads(da, w1, hidden, dhidden, samples, C, width, ROWS: tl.constexpr,
                 BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """The gradient of the hidden layer before its ReLU, (N, rows, h)."""
    ACC: tl.constexpr = da.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    total = tl.zeros((BN, BH), ACC)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        a = tl.load(
            da + n[:, None] * C + c[None, :], mask=(n < samples)[:, None] & (c < C)[None, :], other=0.0
        )
        w = tl.load(
            w1 + c[:, None] * width + h[None, :], mask=(c < C)[:, None] & (h < width)[None, :], other=0.0
        )
        total += product(a, w)
    inside = (n < samples)[:, None] & (h < width)[None, :]
    for row in tl.static_range(ROWS):
        at = (n[:, None] * ROWS + row) * width + h[None, :]
        value = tl.load(hidden + at, mask=inside, other=0.0)
        tl.store(dhidden + at, tl.where(value > 0, total, 0.0), mask=inside)


@triton.jit
def pooled_grads(dhidden, w0, dpooled, s, found, u, argmax, input_sums, samples, C, P, width,
                 AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, LAST: tl.constexpr,
                 BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """Gradients of the pooled values, (N, rows, C), the average's divided by P.

    `input_sums` (N, 2, C), for a norm in front: sum_p dx and sum_p dx u without reading the gradient again, where dx
    is the gradient of the norm's output.
    """
    ACC: tl.constexpr = dpooled.dtype.element_ty if dpooled is not None else input_sums.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    ROWS: tl.constexpr = AVERAGE + MAXIMUM
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (n < samples)[:, None] & (c < C)[None, :]
    average = tl.zeros((BN, BC), ACC)
    peak = tl.zeros((BN, BC), ACC)
    if ROWS > 0:
        for h0 in range(0, width, BH):
            h = h0 + tl.arange(0, BH)
            w = tl.load(
                w0 + h[:, None] * C + c[None, :], mask=(h < width)[:, None] & (c < C)[None, :], other=0.0
            )
            own = (n < samples)[:, None] & (h < width)[None, :]
            at = n[:, None] * ROWS * width + h[None, :]
            if AVERAGE:
                average += product(tl.load(dhidden + at, mask=own, other=0.0), w)
            if MAXIMUM:
                peak += product(tl.load(dhidden + at + AVERAGE * width, mask=own, other=0.0), w)
    average = average / P
    if AVERAGE:
        tl.store(dpooled + n[:, None] * ROWS * C + c[None, :], average, mask=inside)
    if MAXIMUM:
        tl.store(dpooled + (n[:, None] * ROWS + AVERAGE) * C + c[None, :], peak, mask=inside)
    if input_sums is not None:
        row = found + n[:, None] * 3 * C + c[None, :]
        ones = tl.load(row + C, mask=inside, other=0.0)
        us = tl.load(row, mask=inside, other=0.0)
        if s is not None:
            factor = stored(tl.load(s + n[:, None] * C + c[None, :], mask=inside, other=0.0), T)
            ones = ones * factor
            us = us * factor
        ones += average * P + peak
        us += average * tl.load(row + 2 * C, mask=inside, other=0.0)
        if MAXIMUM:
            index = tl.load(argmax + n[:, None] * C + c[None, :], mask=inside, other=0)
            at = index * C + c[None, :] if LAST else c[None, :] * P + index
            us += peak * tl.load(u + n[:, None] * C * P + at, mask=inside, other=0.0).to(ACC)
        to = input_sums + n[:, None] * 2 * C + c[None, :]
        tl.store(to, ones, mask=inside)
        tl.store(to + C, us, mask=inside)


@triton.jit
def weight_grads(da, dhidden, pooled, hidden, dw0, db0, dw1, db1, samples, C, width, ROWS: tl.constexpr,
                 BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """Gradients of the MLP's weights and biases, summed over the samples in order."""
    ACC: tl.constexpr = da.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    first = tl.zeros((BH, BC), ACC)
    last = tl.zeros((BC, BH), ACC)
    first_bias = tl.zeros((BH,), ACC)
    last_bias = tl.zeros((BC,), ACC)
    for n0 in range(0, samples, BN):
        n = (n0 + tl.arange(0, BN)).to(tl.int64)
        a = tl.load(
            da + n[None, :] * C + c[:, None], mask=(n < samples)[None, :] & (c < C)[:, None], other=0.0
        )
        last_bias += tl.sum(a, 1)
        total = tl.zeros((BN, BH), ACC)
        for row in tl.static_range(ROWS):
            at = n * ROWS + row
            own = (n < samples)[:, None] & (h < width)[None, :]
            total += tl.load(hidden + at[:, None] * width + h[None, :], mask=own, other=0.0)
            d = tl.load(dhidden + at[None, :] * width + h[:, None], mask=(n < samples)[None, :] & (h < width)[:, None],
                        other=0.0)  # fmt: skip
            first_bias += tl.sum(d, 1)
            known = (n < samples)[:, None] & (c < C)[None, :]
            x = tl.load(pooled + at[:, None] * C + c[None, :], mask=known, other=0.0)
            first += product(d, x)
        last += product(a, total)
    inside = (h < width)[:, None] & (c < C)[None, :]
    tl.store(dw0 + h[:, None] * C + c[None, :], first, mask=inside)
    tl.store(dw1 + c[:, None] * width + h[None, :], last, mask=(c < C)[:, None] & (h < width)[None, :])
    if db0 is not None:
        if tl.program_id(0) == 0:
            tl.store(db0 + h, first_bias, mask=h < width)
    if db1 is not None:
        if tl.program_id(1) == 0:
            tl.store(db1 + c, ROWS * last_bias, mask=c < C)


@triton.jit
def kernel_grads(partial, dkernel, norm_sums, dnorm_weight, dnorm_bias, count, samples, size,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Add the partial sums of the kernel's gradient; the first program also those of the norm's weight and bias."""
    ACC: tl.constexpr = partial.dtype.element_ty
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), ACC)
    for start in range(0, count, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        total += tl.load(partial + row[:, None] * size + i[None, :], mask=(row < count)[:, None] & (i < size)[None, :],
                         other=0.0)  # fmt: skip
    tl.store(dkernel + i, tl.sum(total, 0), mask=i < size)
    if norm_sums is not None:
        if tl.program_id(0) == 0:
            plain = tl.zeros((ROWS,), ACC)
            sloped = tl.zeros((ROWS,), ACC)
            for start in range(0, samples, ROWS):
                n = start + tl.arange(0, ROWS)
                plain += tl.load(norm_sums + n * 2, mask=n < samples, other=0.0)
                sloped += tl.load(norm_sums + n * 2 + 1, mask=n < samples, other=0.0)
            if dnorm_weight is not None:
                tl.store(dnorm_weight, tl.sum(sloped, 0))
            if dnorm_bias is not None:
                tl.store(dnorm_bias, tl.sum(plain, 0))


@triton.jit
def norm_grads(input_sums, weight, mean, invstd, dweight, dbias, k1, k0, samples, C, P, ROWS: tl.constexpr,
               BC: tl.constexpr):  # fmt: skip
    """Gradients of the norm in front; where its statistics come from the batch, k1 and k0 of dx += k1 u + k0."""
    ACC: tl.constexpr = input_sums.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    ones = tl.zeros((ROWS, BC), ACC)
    us = tl.zeros((ROWS, BC), ACC)
    for start in range(0, samples, ROWS):
        n = (start + tl.arange(0, ROWS)).to(tl.int64)
        row = input_sums + n[:, None] * 2 * C + c[None, :]
        inside = (n < samples)[:, None] & (c < C)[None, :]
        ones += tl.load(row, mask=inside, other=0.0)
        us += tl.load(row + C, mask=inside, other=0.0)
    one = tl.sum(ones, 0)
    centre = tl.load(mean + c, mask=c < C, other=0.0)
    spread = tl.load(invstd + c, mask=c < C, other=0.0)
    slope = spread * (tl.sum(us, 0) - centre * one)
    if dweight is not None:
        tl.store(dweight + c, slope, mask=c < C)
    if dbias is not None:
        tl.store(dbias + c, one, mask=c < C)
    if k1 is not None:
        alpha = spread
        if weight is not None:
            alpha = alpha * tl.load(weight + c, mask=c < C, other=0.0)
        count = samples.to(ACC) * P
        tl.store(k1 + c, -alpha * spread * slope / count, mask=c < C)
        tl.store(k0 + c, alpha * (centre * spread * slope - one) / count, mask=c < C)
