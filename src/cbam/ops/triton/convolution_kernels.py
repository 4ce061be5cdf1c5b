"""Backward through the spatial gate's convolution."""

import triton
import triton.language as tl

from cbam.ops.triton.common import tap, wait_for_the_kernel_before


@triton.jit
def convolution_grads(dz, maps, kernel, dmaps, partial, arrived, C, P, height, width, parts, per_part, blocks,
                      AVERAGE: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr,
                      RUN: tl.constexpr, BQ: tl.constexpr):  # fmt: skip
    """Gradients of the maps (N, planes, P), the mean's divided by C; partial sums of the kernel's, one row per part.

    A thread has RUN positions of a row at a time, and reads the RUN + K - 1 around them once. Along the grid's second
    axis each program sums one row of the kernel's gradient; the last one computes the maps' gradients, and sets
    `arrived` (N, blocks) to zero for `weighted`.
    """
    wait_for_the_kernel_before()
    ACC: tl.constexpr = dz.dtype.element_ty
    n = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    columns = (width + RUN - 1) // RUN
    runs = height * columns
    start = part * per_part
    dz += n * P
    maps += n * PLANES * P
    dmaps += n * PLANES * P
    row = tl.program_id(1)
    if row == K:
        if arrived is not None:
            if part == 0:
                for i0 in range(0, blocks, 128):
                    i = i0 + tl.arange(0, 128)
                    tl.store(arrived + n * blocks + i, tl.zeros((128,), tl.int32), mask=i < blocks)
        for q0 in range(start, tl.minimum(start + per_part, runs), BQ):
            q = q0 + tl.arange(0, BQ)
            h = q // columns
            w = q % columns * RUN
            back = ()
            for _ in tl.static_range(PLANES * RUN):
                back = back + (tl.zeros((BQ,), ACC),)
            for dh in range(K):
                near = neighbours(dz, h + K // 2 - dh, w, q < runs, height, width, K, RUN)
                back = spread(back, near, kernel, dh, K, PLANES, INNER, RUN, ACC)
            for plane in tl.static_range(PLANES):
                for i in tl.static_range(RUN):
                    value = back[plane * RUN + i]
                    if plane == AVERAGE:
                        value = value / C
                    tl.store(dmaps + plane * P + h * width + w + i, value, mask=(q < runs) & (w + i < width))
    else:
        sums = ()
        for _ in tl.static_range(PLANES * K):
            sums = sums + (tl.zeros((BQ,), ACC),)
        for q0 in range(start, tl.minimum(start + per_part, runs), BQ):
            q = q0 + tl.arange(0, BQ)
            h = q // columns
            w = q % columns * RUN
            grads = neighbours(dz, h, w, q < runs, height, width, 1, RUN)
            added = ()
            for plane in tl.static_range(PLANES):
                near = neighbours(maps + plane * P, h + row - K // 2, w, q < runs, height, width, K, RUN)
                for dw in tl.static_range(K):
                    total = sums[plane * K + dw]
                    for i in tl.static_range(RUN):
                        total = tl.fma(grads[i], near[i + dw], total)
                    added = added + (total,)
            sums = added
        to = partial + tl.program_id(0).to(tl.int64) * (PLANES * K * K) + row * K
        for plane in tl.static_range(PLANES):
            for dw in tl.static_range(K):
                tl.store(to + plane * K * K + dw, tl.sum(sums[plane * K + dw], 0))


@triton.jit
def neighbours(plane, h, w, wanted, height, width, K: tl.constexpr, RUN: tl.constexpr):
    """RUN + K - 1 values of a row, from K // 2 left of w on; zero beyond the border."""
    at = plane + h * width + w
    row = wanted & (h >= 0) & (h < height)
    values = ()
    for i in tl.static_range(RUN + K - 1):
        inside = row & (w >= K // 2 - i) & (w < width + K // 2 - i)
        values = values + (tl.load(at + (i - K // 2), mask=inside, other=0.0),)
    return values


@triton.jit
def spread(back, near, kernel, dh, K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr, RUN: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """Add what a row of the logits' gradient gives to RUN positions of each map."""
    added = ()
    for plane in tl.static_range(PLANES):
        row = ()
        for dw in tl.static_range(K):
            row = row + (tap(kernel, plane, dh * K + (K - 1 - dw), K, PLANES, INNER).to(ACC),)
        for i in tl.static_range(RUN):
            total = back[plane * RUN + i]
            for dw in tl.static_range(K):
                total = tl.fma(near[i + dw], tl.zeros_like(total) + row[dw], total)
            added = added + (total,)
    return added
