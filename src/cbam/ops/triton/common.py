"""What the kernels share: reading a tile of the map, the norm in front, gates, convolution, first maxima.

A sample is a matrix of C channels and P positions; one kernel serves both memory formats, and LAST says which of the
two axes is contiguous. Tiles are (BC, BP), channels first. Sums and gates are in the type of the vectors that are
kept for backward (ACC); products that the map's type rounds are rounded to it before the next operation.

Fused multiply-adds are off for all kernels (`launch.py`), since they round a product and a sum once where plain PyTorch
rounds twice; the norm in front uses explicit ones.
"""

# No `from __future__ import annotations`: the interpreter looks for tl.constexpr among the annotations.
import triton
import triton.language as tl

from cbam.ops.triton.mode import INTERPRETED

# Triton's interpreter cuts the low bits off where a GPU rounds to bfloat16.
TRUNCATES = tl.constexpr(INTERPRETED)


@triton.jit
def tile_offsets(c, p, C, P, LAST: tl.constexpr):
    """Offsets of the tile of channels c (BC,) and positions p (BP,) within a sample."""
    if LAST:
        return p[None, :] * C + c[:, None]
    return c[:, None] * P + p[None, :]


@triton.jit
def affine(weight, bias, mean, invstd, c, inside):
    """The norm in front at channels c as alpha and beta, (BC,): x = alpha u + beta."""
    alpha = tl.load(invstd + c, mask=inside, other=0.0)
    if weight is not None:
        alpha = alpha * tl.load(weight + c, mask=inside, other=0.0)
    beta = -tl.load(mean + c, mask=inside, other=0.0) * alpha
    if bias is not None:
        beta = tl.load(bias + c, mask=inside, other=0.0) + beta
    return alpha, beta


@triton.jit
def after_norm(u, weight, bias, mean, invstd, c, inside, T: tl.constexpr):
    """The map's values, (BC, BP) in ACC, from those in memory, which are the norm's input where there is one."""
    if mean is not None:
        alpha, beta = affine(weight, bias, mean, invstd, c, inside)
        return stored(tl.fma(u, alpha[:, None], beta[:, None]), T)
    return u


@triton.jit
def cast(value, T: tl.constexpr):
    """A value in type T, rounded to nearest even."""
    if TRUNCATES and tl.bfloat16 == T and value.dtype == tl.float32:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(T)


@triton.jit
def stored(value, T: tl.constexpr):
    """A value rounded to type T."""
    return cast(value, T).to(value.dtype)


@triton.jit
def first_largest(value, index, AXIS: tl.constexpr):
    """Maximum along an axis and the smallest index that attains it; NaN is the largest."""
    nan = value != value
    best = tl.max(tl.where(nan, float("-inf"), value), AXIS)
    any_nan = tl.max(nan.to(tl.int32), AXIS) > 0
    matches = tl.where(tl.expand_dims(any_nan, AXIS), nan, value == tl.expand_dims(best, AXIS))
    first = tl.min(tl.where(matches, index, 2147483647), AXIS)
    return tl.where(any_nan, float("nan"), best), first


@triton.jit
def larger(value, best):
    """Whether a later value replaces the maximum: it is larger, or the first NaN."""
    return (best == best) & ((value > best) | (value != value))


@triton.jit
def divided(a, b):
    """The correctly rounded quotient: on a GPU `/` only approximates it, and a gate of one has to be exactly one."""
    if a.dtype == tl.float32:
        return tl.math.div_rn(a, b.to(tl.float32))
    return a / b


@triton.jit
def gate(z, scale, HARD: tl.constexpr):
    """scale * sigmoid(z), or of the hard sigmoid; `scale` points to one number or is None."""
    if HARD:
        value = divided(tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0), tl.full([1], 6.0, z.dtype))
    else:
        small = tl.exp(-tl.abs(z))  # never overflows
        value = divided(tl.where(z >= 0, tl.full([1], 1.0, z.dtype), small), 1.0 + small)
    value = tl.where(z != z, z, value)
    if scale is not None:
        value = value * tl.load(scale)
    return value


@triton.jit
def through_gate(grad, value, scale, HARD: tl.constexpr):
    """grad times the derivative of `gate`, computed from the gate's value."""
    factor = tl.full([1], 1.0, grad.dtype)
    if scale is not None:
        factor = factor * tl.load(scale)
    share = value / factor
    if HARD:
        inside = (share > 0) & (share < 1)
        slope = tl.where(inside, factor / 6.0, tl.where(share == share, 0.0, share))
    else:
        slope = value * (1.0 - share)
    return tl.where(factor == 0, 0.0, grad * slope)


@triton.jit
def convolved(
    maps, kernel, p, inside, height, width, K: tl.constexpr, PLANES: tl.constexpr, TAPS: tl.constexpr
):
    """The k x k convolution of a sample's maps (PLANES, P) at positions p, (BP,)."""
    h = p // width
    w = p % width
    z = tl.zeros(p.shape, maps.dtype.element_ty)
    for plane in tl.static_range(PLANES):
        for first in range(0, K * K, TAPS):
            tap = first + tl.arange(0, TAPS)
            weight = tl.load(kernel + plane * K * K + tap, mask=tap < K * K, other=0.0)
            value = shifted(maps + plane * height * width, h, w, tap // K - K // 2, tap % K - K // 2,
                            (tap < K * K)[:, None] & inside[None, :], height, width)  # fmt: skip
            z += tl.sum(weight[:, None] * value, 0)
    return z


@triton.jit
def shifted(plane, h, w, dh, dw, wanted, height, width):
    """A plane's values at (h + dh, w + dw), (TAPS, BP), zero beyond its border."""
    hh = h[None, :] + dh[:, None]
    ww = w[None, :] + dw[:, None]
    wanted = wanted & (hh >= 0) & (hh < height) & (ww >= 0) & (ww < width)
    return tl.load(plane + hh * width + ww, mask=wanted, other=0.0)
