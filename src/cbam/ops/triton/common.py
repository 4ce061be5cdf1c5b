"""What the kernels share: reading a tile of the map, the norm in front, gates, convolution, first maxima.

A sample is a matrix of C channels and P positions; one kernel serves both memory formats, and LAST says which of the
two axes is contiguous. Tiles are (BC, BP), channels first. Sums and gates are in the type of the vectors that are
kept for backward (ACC); products that the map's type rounds are computed in that type.

The compiler forms no fused multiply-adds by itself (`launch.py`), since they would round a product and a sum together
where plain PyTorch rounds twice; where that does not matter, the kernels ask for them (`tl.fma`).
"""

# Annotations of kernels stay objects: the interpreter looks for tl.constexpr among them.
import triton
import triton.language as tl

from cbam.ops.triton.mode import INTERPRETED


@triton.constexpr_function
def packs(elements):
    """Whether so many bfloat16 numbers are pairs, and the target an NVIDIA GPU that computes with those."""
    return not INTERPRETED and elements % 2 == 0 and tl.target_info.cuda_capability_geq(8, 0)


@triton.constexpr_function
def overlaps():
    """Whether the target can begin a kernel before the end of the one before it, as `plan.py` asks it to."""
    return not INTERPRETED and tl.target_info.cuda_capability_geq(9, 0)


@triton.jit
def wait_for_the_kernel_before():
    """First of all in each kernel: let the next one take its place, and wait for what the last one wrote."""
    if overlaps():
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


# Triton's interpreter cuts the low bits off where a GPU rounds to bfloat16.
TRUNCATES = tl.constexpr(INTERPRETED)


@triton.jit
def tile_offsets(c, p, C, P, LAST: tl.constexpr):
    """Offsets of the tile of channels c (BC,) and positions p (BP,) within a sample."""
    if LAST:
        return p[None, :] * C + c[:, None]
    return c[:, None] * P + p[None, :]


@triton.jit
def loaded(at, mask, POLICY: tl.constexpr):
    """What is in memory, zero where the mask refuses; without a mask everywhere."""
    if mask is None:
        value = tl.load(at, eviction_policy=POLICY)
    else:
        value = tl.load(at, mask=mask, other=0.0, eviction_policy=POLICY)
    return value


@triton.jit
def inverse_root(var, eps, BATCH: tl.constexpr):
    """1 / sqrt(var + eps) as torch's batch norm has it: the nearest number with statistics of the batch (BATCH)."""
    if not BATCH:
        root = tl.rsqrt(var + eps)
    elif TRUNCATES or var.dtype == tl.float64:  # the interpreter rounds a product and a sum apart
        root = (1.0 / tl.sqrt(var.to(tl.float64) + eps)).to(var.dtype)
    else:
        total = var + eps
        added = total - var
        low = (var - (total - added)) + (eps - added)  # what the sum lost
        near = tl.rsqrt(total)
        square = near * near
        rest = tl.fma(near, near, -square)
        away = tl.fma(-total, square, tl.full(var.shape, 1.0, var.dtype)) - (total * rest + low * square)
        root = tl.fma(0.5 * near, away, near)
        root = tl.where(root == root, root, near)
    return root


@triton.jit
def fold(weight, bias, mean, var, eps, norm, first, end, C, BATCH: tl.constexpr, BLOCK: tl.constexpr):
    """Write the norm in front of channels first to end - 1 as x = alpha u + beta: `norm` (2, C).

    Programs with the same channels write the same numbers; a program reads those that it wrote itself.
    """
    ACC: tl.constexpr = norm.dtype.element_ty
    for c0 in range(first, end, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        inside = c < end
        alpha = inverse_root(tl.load(var + c, mask=inside, other=1.0).to(ACC), eps, BATCH)
        if weight is not None:
            alpha = alpha * tl.load(weight + c, mask=inside, other=0.0).to(ACC)
        beta = -tl.load(mean + c, mask=inside, other=0.0).to(ACC) * alpha
        if bias is not None:
            beta = tl.load(bias + c, mask=inside, other=0.0).to(ACC) + beta
        tl.store(norm + c, alpha, mask=inside)
        tl.store(norm + C + c, beta, mask=inside)
    tl.debug_barrier()


@triton.jit
def affine(norm, c, inside, C, ACC: tl.constexpr):
    """alpha and beta of `fold` at channels c, of c's shape; 1 and 0 without a norm in front."""
    alpha = tl.full(c.shape, 1.0, ACC)
    beta = tl.zeros(c.shape, ACC)
    if norm is not None:
        alpha = loaded(norm + c, inside, "")
        beta = loaded(norm + C + c, inside, "")
    return alpha, beta


@triton.jit
def normalised(u, alpha, beta, norm):
    """The map's values from what is in memory, a tile (BC, BP) in its type; without a norm they are the same."""
    if norm is not None:
        u = cast(tl.fma(widened(u, alpha.dtype), alpha[:, None], beta[:, None]), u.dtype)
    return u


@triton.jit
def widened(value, ACC: tl.constexpr):
    """A value of a map as sums have it; exact."""
    if tl.bfloat16 == value.dtype and tl.float32 == ACC and packs(value.numel):
        # Two from a register, an instruction each.
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=f,=f,r", [value], dtype=tl.float32, is_pure=True,
            pack=2,
        )  # fmt: skip
    return value.to(ACC)


@triton.jit
def cast(value, T: tl.constexpr):
    """A value in type T, rounded to nearest even."""
    if tl.bfloat16 == T and value.dtype == tl.float32 and packs(value.numel):
        # Two at once; one by one is eight times slower.
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [value], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    if TRUNCATES and tl.bfloat16 == T and value.dtype == tl.float32:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(T)


@triton.jit
def stored(value, T: tl.constexpr):
    """A value as a map of type T would hold it."""
    return cast(value, T).to(value.dtype)


@triton.jit
def times(a, b):
    """The product of two tiles of the map's type, rounded to it: two products an instruction in 16 bits."""
    if TRUNCATES and tl.bfloat16 == a.dtype:
        return cast(a.to(tl.float32) * b.to(tl.float32), a.dtype)
    return a * b


@triton.jit
def plus(a, b):
    """The sum of two tiles of the map's type, rounded to it."""
    if TRUNCATES and tl.bfloat16 == a.dtype:
        return cast(a.to(tl.float32) + b.to(tl.float32), a.dtype)
    return a + b


@triton.jit
def relu(x):
    """x, zero where it is negative; NaN stays."""
    if tl.bfloat16 == x.dtype and packs(x.numel):
        zero = tl.zeros_like(x)
        return tl.inline_asm_elementwise(
            "max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [x, zero], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    return tl.where(x < 0, tl.zeros_like(x), x)


@triton.jit
def nan_or_larger(a, b):
    """The larger one of two; NaN is the largest."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(value, AXIS: tl.constexpr):
    """Maximum along an axis; NaN is the largest."""
    if TRUNCATES:  # the interpreter takes minutes for a reduction that it does not know
        any_nan = tl.max((value != value).to(tl.int32), AXIS) > 0
        return tl.where(any_nan, float("nan"), tl.max(tl.where(value != value, float("-inf"), value), AXIS))
    return tl.reduce(value, AXIS, nan_or_larger)


@triton.jit
def first_largest(value, index, AXIS: tl.constexpr):
    """Maximum along an axis and the smallest index that attains it; NaN is the largest."""
    nan = value != value
    best = tl.max(tl.where(nan, float("-inf"), value), AXIS)
    any_nan = tl.max(nan.to(tl.int32), AXIS) > 0
    hit = tl.where(tl.expand_dims(any_nan, AXIS), nan, value == tl.expand_dims(best, AXIS))
    first = tl.min(tl.where(hit, index, 2147483647), AXIS)
    return tl.where(any_nan, float("nan"), best), first


@triton.jit
def larger(value, best):
    """Whether a later value takes a maximum's place: it is larger, or the first NaN."""
    return (best == best) & ((value > best) | (value != value))


@triton.jit
def divided(a, b):
    """The rounded quotient: a plain `/` is only nearly that on a GPU, and a gate of one has to be one."""
    if a.dtype == tl.float32:
        return tl.math.div_rn(a, b.to(tl.float32))
    return a / b


@triton.constexpr_function
def precision(dtype):
    """How exact tensor cores multiply float32: three products of halves of the digits each, nearly float32."""
    return "tf32x3" if not INTERPRETED and dtype == tl.float32 and tl.target_info.is_cuda() else "ieee"


@triton.jit
def product(a, b):
    """The matrix product in full precision."""
    return tl.dot(a, b, input_precision=precision(a.dtype), out_dtype=a.dtype)


@triton.jit
def gate(z, scale, HARD: tl.constexpr):
    """scale * sigmoid(z), or of the hard sigmoid; `scale` points to one number or is None."""
    if HARD:
        value = divided(tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0), tl.full([1], 6.0, z.dtype))
    else:
        small = tl.exp(-tl.abs(z))  # of a number that is not positive, so that it cannot overflow
        value = divided(tl.where(z >= 0, tl.full([1], 1.0, z.dtype), small), 1.0 + small)
    value = tl.where(z != z, z, value)
    if scale is not None:
        value = value * tl.load(scale).to(value.dtype)
    return value


@triton.jit
def through_gate(grad, value, scale, HARD: tl.constexpr):
    """grad times the derivative of `gate`, told from the gate's value."""
    factor = tl.full([1], 1.0, grad.dtype)
    if scale is not None:
        factor = factor * tl.load(scale).to(grad.dtype)
    share = value / factor
    if HARD:
        inside = (share > 0) & (share < 1)
        slope = tl.where(inside, factor / 6.0, tl.where(share == share, 0.0, share))
    else:
        slope = value * (1.0 - share)
    return tl.where(factor == 0, 0.0, grad * slope)


@triton.jit
def tap(kernel, plane, at, K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr):
    """The weight of a plane at place `at` of the K x K; INNER: the planes are the inner axis, as in channels_last."""
    return tl.load(kernel + (at * PLANES + plane if INNER else plane * K * K + at))


@triton.jit
def convolved(maps, kernel, p, inside, height, width, K: tl.constexpr, PLANES: tl.constexpr,
              INNER: tl.constexpr):  # fmt: skip
    """The k x k convolution of a sample's maps (PLANES, P) at positions p, (BP,): each thread has its own position."""
    h = p // width
    w = p % width
    z = tl.zeros(p.shape, maps.dtype.element_ty)
    for dh in tl.static_range(-(K // 2), K // 2 + 1):
        row = inside & (h + dh >= 0) & (h + dh < height)
        for dw in tl.static_range(-(K // 2), K // 2 + 1):
            here = row & (w < width - dw) if dw > 0 else row & (w >= -dw)
            for plane in tl.static_range(PLANES):
                value = tl.load(maps + plane * height * width + (p + (dh * width + dw)), mask=here, other=0.0)
                weight = tap(kernel, plane, (dh + K // 2) * K + dw + K // 2, K, PLANES, INNER).to(z.dtype)
                z = tl.fma(tl.zeros(p.shape, z.dtype) + weight, value, z)
    return z


@triton.jit
def logit_factor(var, eps, ACC: tl.constexpr):
    """1 / sqrt(var + eps) of the one number in memory."""
    return 1.0 / tl.sqrt(tl.load(var).to(ACC) + eps)


@triton.jit
def spatial_gate(maps, kernel, z, z_stats, norm_weight, norm_bias, norm_mean, norm_var, scale, n, p, P, height, width,
                 eps, K: tl.constexpr, PLANES: tl.constexpr, INNER: tl.constexpr, HARD: tl.constexpr):  # fmt: skip
    """The spatial gate of sample n at positions p, (BP,), from the logits z that are there or from the maps."""
    if z is not None:
        logit = (tl.load(z + n * P + p, mask=p < P, other=0.0) - tl.load(z_stats)) * tl.load(z_stats + 1)
    else:
        logit = convolved(maps + n * PLANES * P, kernel, p, p < P, height, width, K, PLANES, INNER)
        if norm_mean is not None:
            logit = logit - tl.load(norm_mean).to(logit.dtype)
        if norm_var is not None:
            logit = logit * logit_factor(norm_var, eps, logit.dtype)
    if norm_weight is not None:
        logit = logit * tl.load(norm_weight).to(logit.dtype)
    if norm_bias is not None:
        logit = logit + tl.load(norm_bias).to(logit.dtype)
    return gate(logit, scale, HARD)
