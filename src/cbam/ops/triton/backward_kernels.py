"""The small kernels of backward, between its passes over the map (`backward_passes.py`, with the formulas)."""

import triton
import triton.language as tl

from cbam.ops.triton.common import (
    affine,
    cast,
    convolved,
    inverse_root,
    logit_factor,
    product,
    stored,
    through_gate,
    wait_for_the_kernel_before,
)
from cbam.ops.triton.forward_kernels import layer


@triton.jit
def logit_grads(dt, t, scale, maps, kernel, z, z_stats, norm_weight, norm_mean, norm_var, dz, norm_sums,
                P, height, width, parts, tiles, eps, K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr,
                HARD: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """The gradient of the convolution's output, apart from the norm's batch statistics, (N, P); one program a tile.

    `norm_sums` (N tiles, 2): sums of the gradient of the norm's output, alone and times the normalised logit.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = dt.dtype.element_ty
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BP + tl.arange(0, BP)
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
            invstd = logit_factor(norm_var, eps, ACC)
            normal = convolved(maps + n * PLANES * P, kernel, p, inside, height, width, K, PLANES, INNER)
            normal = (normal - tl.load(norm_mean).to(ACC)) * invstd
        to = norm_sums + tl.program_id(0).to(tl.int64) * 2
        tl.store(to, tl.sum(tl.where(inside, d, 0.0), 0))
        tl.store(to + 1, tl.sum(tl.where(inside, d * normal, 0.0), 0))
        if z is None:
            d = d * invstd
        if norm_weight is not None:
            d = d * tl.load(norm_weight).to(ACC)
    elif norm_var is not None:
        d = d * logit_factor(norm_var, eps, ACC)
    tl.store(dz + n * P + p, d, mask=inside)


@triton.jit
def through_statistics(
    dz, z, z_stats, norm_weight, norm_sums, count, samples, P, BLOCK: tl.constexpr, BP: tl.constexpr
):
    """dz becomes invstd (dz - mean(dz) - normal mean(dz normal)), the means over all samples.

    `norm_sums` (count, 2) are the partial sums of `logit_grads`.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = dz.dtype.element_ty
    plain = tl.zeros((BLOCK,), ACC)
    sloped = tl.zeros((BLOCK,), ACC)
    for i0 in range(0, count, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        plain += tl.load(norm_sums + i * 2, mask=i < count, other=0.0)
        sloped += tl.load(norm_sums + i * 2 + 1, mask=i < count, other=0.0)
    size = tl.full([1], 0, tl.int64) + samples
    size = size * P
    share = tl.full([1], 1.0, ACC) / size.to(ACC)
    if norm_weight is not None:
        share = share * tl.load(norm_weight).to(ACC)
    invstd = tl.load(z_stats + 1)
    i = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    inside = i < size
    normal = (tl.load(z + i, mask=inside, other=0.0) - tl.load(z_stats)) * invstd
    d = tl.load(dz + i, mask=inside, other=0.0)
    d = invstd * (d - share * tl.sum(plain, 0) - normal * (share * tl.sum(sloped, 0)))
    tl.store(dz + i, d, mask=inside)


@triton.jit
def channel_sums(first, tiles, second, splits, s, scale, norm, da, found, C,
                 SUMS: tl.constexpr, SECOND: tl.constexpr, HARD: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Add the partial sums: da = ds gate'(a) (N, C); with a norm in front also sums over g' u, g' and u (N, 3, C)."""
    wait_for_the_kernel_before()
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel_sums_of(first, tiles, second, splits, s, scale, norm, da, found, n, c, C,
                    SUMS, SECOND, HARD, BC)  # fmt: skip


@triton.jit
def channel_sums_of(first, tiles, second, splits, s, scale, norm, da, found, n, c, C,
                    SUMS: tl.constexpr, SECOND: tl.constexpr, HARD: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """The same for one sample's channels c (BC,)."""
    ACC: tl.constexpr = first.dtype.element_ty
    of_u = summed(first, n * tiles, tiles, SUMS, 0, c, C, ACC)
    if SUMS == 3:
        of_one = summed(first, n * tiles, tiles, SUMS, 1, c, C, ACC)
        us = summed(first, n * tiles, tiles, SUMS, 2, c, C, ACC)
    if SECOND > 0:
        of_u += summed(second, n * splits, splits, SECOND, 0, c, C, ACC)
        if SECOND == 2:
            of_one += summed(second, n * splits, splits, SECOND, 1, c, C, ACC)
    if da is not None:
        ds = of_u
        if norm is not None:
            alpha, beta = affine(norm, c, c < C, C, ACC)
            ds = alpha * of_u + beta * of_one
        value = tl.load(s + n * C + c, mask=c < C, other=0.0)
        tl.store(da + n * C + c, through_gate(ds, value, scale, HARD), mask=c < C)
    if SUMS == 3:
        tl.store(found + n * 3 * C + c, of_u, mask=c < C)
        tl.store(found + (n * 3 + 1) * C + c, of_one, mask=c < C)
        tl.store(found + (n * 3 + 2) * C + c, us, mask=c < C)


@triton.jit
def summed(partial, row, count, SUMS: tl.constexpr, number: tl.constexpr, c, C, ACC: tl.constexpr):
    """The sum over `count` rows of channels c (BC,) of partial sums (..., SUMS, C), eight rows at a time."""
    total = tl.zeros((8, c.shape[0]), ACC)
    for i0 in range(0, count, 8):
        i = i0 + tl.arange(0, 8)
        at = ((row + i[:, None]) * SUMS + number) * C + c[None, :]
        total += tl.load(partial + at, mask=(i < count)[:, None] & (c < C)[None, :], other=0.0)
    return tl.sum(total, 0)


@triton.jit
def hidden_grads(da, w1, hidden, dhidden, samples, C, width, ROWS: tl.constexpr,
                 BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """The gradient of the hidden layer before its ReLU, (N, rows, h)."""
    wait_for_the_kernel_before()
    hidden_grads_of(tl.program_id(0).to(tl.int64) * BN, tl.program_id(1) * BH, da, w1, hidden, dhidden, samples, C,
                    width, ROWS, BN, BH, BC)  # fmt: skip


@triton.jit
def hidden_grads_of(n0, h0, da, w1, hidden, dhidden, samples, C, width, ROWS: tl.constexpr,
                    BN: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """The same for BN samples from n0 on and BH hidden units from h0 on."""
    ACC: tl.constexpr = da.dtype.element_ty
    n = n0 + tl.arange(0, BN)
    h = h0 + tl.arange(0, BH)
    LANES: tl.constexpr = BC if BN == 1 else 1
    sums = tl.zeros((BN, BH, LANES), ACC)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        a = tl.load(
            da + n[:, None] * C + c[None, :], mask=(n < samples)[:, None] & (c < C)[None, :], other=0.0
        )
        w = tl.load(
            w1 + c[None, :] * width + h[:, None], mask=(c < C)[None, :] & (h < width)[:, None], other=0.0
        )
        sums += layer(a, w.to(ACC))
    total = tl.sum(sums, 2)
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
    wait_for_the_kernel_before()
    pooled_grads_of(tl.program_id(0).to(tl.int64) * BN, tl.program_id(1) * BC, dhidden, w0, dpooled, s, found, u,
                    argmax, input_sums, samples, C, P, width, AVERAGE, MAXIMUM, LAST, BN, BC, BH)  # fmt: skip


@triton.jit
def pooled_grads_of(n0, c0, dhidden, w0, dpooled, s, found, u, argmax, input_sums, samples, C, P, width,
                    AVERAGE: tl.constexpr, MAXIMUM: tl.constexpr, LAST: tl.constexpr,
                    BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """The same for BN samples from n0 on and BC channels from c0 on."""
    ACC: tl.constexpr = dpooled.dtype.element_ty if dpooled is not None else input_sums.dtype.element_ty
    T: tl.constexpr = u.dtype.element_ty
    ROWS: tl.constexpr = AVERAGE + MAXIMUM
    n = n0 + tl.arange(0, BN)
    c = c0 + tl.arange(0, BC)
    inside = (n < samples)[:, None] & (c < C)[None, :]
    LANES: tl.constexpr = BH if BN == 1 else 1
    of_average = tl.zeros((BN, BC, LANES), ACC)
    of_peak = tl.zeros((BN, BC, LANES), ACC)
    if ROWS > 0:
        for h0 in range(0, width, BH):
            h = h0 + tl.arange(0, BH)
            w = tl.load(
                w0 + h[None, :] * C + c[:, None], mask=(h < width)[None, :] & (c < C)[:, None], other=0.0
            )
            w = w.to(ACC)
            own = (n < samples)[:, None] & (h < width)[None, :]
            at = n[:, None] * ROWS * width + h[None, :]
            if AVERAGE:
                of_average += layer(tl.load(dhidden + at, mask=own, other=0.0), w)
            if MAXIMUM:
                of_peak += layer(tl.load(dhidden + at + AVERAGE * width, mask=own, other=0.0), w)
    average = tl.sum(of_average, 2) / P
    peak = tl.sum(of_peak, 2)
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
def parameter_grads(da, dhidden, pooled, hidden, dw0, db0, dw1, db1, partial, dkernel, norm_sums, dnorm_weight,
                    dnorm_bias, input_sums, weight, mean, var, eps, dweight, dbias, k1, k0,
                    samples, C, P, width, channel_blocks, of_mlp, of_kernel, count, tiles, size,
                    ROWS: tl.constexpr, BATCH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of all parameters: `of_mlp` programs for the MLP, `of_kernel` for the convolution, then the norm's."""
    wait_for_the_kernel_before()
    i = tl.program_id(0)
    if dw0 is not None:
        if i < of_mlp:
            weight_grads(i % channel_blocks, i // channel_blocks, da, dhidden, pooled, hidden, dw0, db0, dw1, db1,
                         samples, C, width, ROWS, BN, BC, BH)  # fmt: skip
    if dkernel is not None:
        if (i >= of_mlp) & (i < of_mlp + of_kernel):
            kernel_grads(i - of_mlp, partial, dkernel, norm_sums, dnorm_weight, dnorm_bias, count, tiles, size, 64,
                         BLOCK)  # fmt: skip
    if input_sums is not None:
        if i >= of_mlp + of_kernel:
            norm_grads(i - of_mlp - of_kernel, input_sums, weight, mean, var, eps, dweight, dbias, k1, k0,
                       samples, C, P, BATCH, BN, BC)  # fmt: skip


@triton.jit
def weight_grads(block, unit, da, dhidden, pooled, hidden, dw0, db0, dw1, db1, samples, C, width, ROWS: tl.constexpr,
                 BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """Gradients of the MLP's weights and biases, summed over the samples in order."""
    ACC: tl.constexpr = da.dtype.element_ty
    c = block * BC + tl.arange(0, BC)
    h = unit * BH + tl.arange(0, BH)
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
    tl.store(dw0 + h[:, None] * C + c[None, :], cast(first, dw0.dtype.element_ty), mask=inside)
    inside = (c < C)[:, None] & (h < width)[None, :]
    tl.store(dw1 + c[:, None] * width + h[None, :], cast(last, dw1.dtype.element_ty), mask=inside)
    if db0 is not None:
        if block == 0:
            tl.store(db0 + h, cast(first_bias, db0.dtype.element_ty), mask=h < width)
    if db1 is not None:
        if unit == 0:
            tl.store(db1 + c, cast(ROWS * last_bias, db1.dtype.element_ty), mask=c < C)


@triton.jit
def kernel_grads(block, partial, dkernel, norm_sums, dnorm_weight, dnorm_bias, count, tiles, size,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Add the partial sums of the kernel's gradient; the first program also those of the norm's weight and bias."""
    ACC: tl.constexpr = partial.dtype.element_ty
    i = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), ACC)
    for start in range(0, count, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        total += tl.load(partial + row[:, None] * size + i[None, :], mask=(row < count)[:, None] & (i < size)[None, :],
                         other=0.0)  # fmt: skip
    tl.store(dkernel + i, cast(tl.sum(total, 0), dkernel.dtype.element_ty), mask=i < size)
    if norm_sums is not None:
        if block == 0:
            plain = tl.zeros((ROWS,), ACC)
            sloped = tl.zeros((ROWS,), ACC)
            for start in range(0, tiles, ROWS):
                row = (start + tl.arange(0, ROWS)).to(tl.int64)
                plain += tl.load(norm_sums + row * 2, mask=row < tiles, other=0.0)
                sloped += tl.load(norm_sums + row * 2 + 1, mask=row < tiles, other=0.0)
            if dnorm_weight is not None:
                tl.store(dnorm_weight, tl.sum(sloped, 0).to(dnorm_weight.dtype.element_ty))
            if dnorm_bias is not None:
                tl.store(dnorm_bias, tl.sum(plain, 0).to(dnorm_bias.dtype.element_ty))


@triton.jit
def norm_grads(block, input_sums, weight, mean, var, eps, dweight, dbias, k1, k0, samples, C, P,
               BATCH: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Gradients of the norm in front; where its statistics come from the batch, k1 and k0 of dx += k1 u + k0."""
    ACC: tl.constexpr = input_sums.dtype.element_ty
    c = block * BC + tl.arange(0, BC)
    ones = tl.zeros((ROWS, BC), ACC)
    us = tl.zeros((ROWS, BC), ACC)
    for start in range(0, samples, ROWS):
        n = (start + tl.arange(0, ROWS)).to(tl.int64)
        row = input_sums + n[:, None] * 2 * C + c[None, :]
        inside = (n < samples)[:, None] & (c < C)[None, :]
        ones += tl.load(row, mask=inside, other=0.0)
        us += tl.load(row + C, mask=inside, other=0.0)
    one = tl.sum(ones, 0)
    centre = tl.load(mean + c, mask=c < C, other=0.0).to(ACC)
    spread = inverse_root(tl.load(var + c, mask=c < C, other=1.0).to(ACC), eps, BATCH)
    slope = spread * (tl.sum(us, 0) - centre * one)
    if dweight is not None:
        tl.store(dweight + c, cast(slope, dweight.dtype.element_ty), mask=c < C)
    if dbias is not None:
        tl.store(dbias + c, cast(one, dbias.dtype.element_ty), mask=c < C)
    if k1 is not None:
        alpha = spread
        if weight is not None:
            alpha = alpha * tl.load(weight + c, mask=c < C, other=0.0).to(ACC)
        count = (tl.full([1], 0, tl.int64) + samples).to(ACC) * P
        tl.store(k1 + c, -alpha * spread * slope / count, mask=c < C)
        tl.store(k0 + c, alpha * (centre * spread * slope - one) / count, mask=c < C)
