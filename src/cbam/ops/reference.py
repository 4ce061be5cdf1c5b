"""CBAM's arithmetic in plain torch: the definition that every backend is tested against.

Every function takes a feature map x of shape (N, C, H, W) or (C, H, W) in any memory format, or with another number
`dims` of sizes behind C. Numerics:

- pooling and gate arithmetic run in float32 (float64 for float64 input), autocast or not; a gate is rounded
  to x's dtype once, just before it multiplies x;
- a maximum sends its gradient to the first index (row-major over the positions; lowest channel over C); NaN wins.

The functions are leaves for `torch.fx` (`torch.fx.wrap`), so a traced model keeps one call per step. A leaf is
recognised only when it is called through this module: write `reference.channel_logits(...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_POOLINGS = ("both", "avg", "max")
SPATIAL_DESCRIPTORS = ("both", "avg", "max", "conv")
DESCRIPTOR_ORDERS = ("avg-max", "max-avg")
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over a map of `dtype` are taken.

    >>> accumulation_dtype(torch.bfloat16)
    torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on x's device."""
    # Entering autocast costs microseconds, so only where it is on.
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


@torch.fx.wrap
def first_index_max(x: Tensor, dim: int) -> Tensor:
    """Return the maximum of x along `dim` (kept, size 1); its gradient goes to the first index that attains it.

    `amax` would spread the gradient evenly over ties, which are common in low precision and after a ReLU.
    It is faster, though, and used where no gradient is needed and `torch.jit` does not trace: its graph holds the same
    operations whoever traces.
    """
    if (x.requires_grad and torch.is_grad_enabled()) or torch.jit.is_tracing():
        return x.max(dim, keepdim=True).values
    return x.amax(dim, keepdim=True)


@torch.fx.wrap
def channel_descriptors(x: Tensor, pooling: str = "both", dims: int = 2) -> list[Tensor]:
    """Return what the channel gate reads: average and/or maximum of each channel, (N, C) each."""
    dtype = accumulation_dtype(x.dtype)
    with full_precision(x):
        pooled = []
        if pooling in ("both", "avg"):
            pooled.append(x.mean(tuple(range(-dims, 0)), dtype=dtype))
        if pooling in ("both", "max"):
            pooled.append(first_index_max(x.flatten(-dims), -1).squeeze(-1).to(dtype))
    return pooled


@torch.fx.wrap
def channel_logits(
    x: Tensor,
    w0: Tensor,
    b0: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    pooling: str = "both",
    dims: int = 2,
) -> Tensor:
    """Return the channel gate before its activation, W1(relu(W0 avg)) + W1(relu(W0 max)), as (N, C, 1, 1)."""
    dtype = accumulation_dtype(x.dtype)
    w0, w1 = w0.flatten(1).to(dtype), w1.flatten(1).to(dtype)
    b0, b1 = (b if b is None else b.to(dtype) for b in (b0, b1))
    with full_precision(x):
        pooled = channel_descriptors(x, pooling, dims)
        logits = [F.linear(F.relu(F.linear(p, w0, b0)), w1, b1) for p in pooled]  # (N, C) each
        return over_positions(sum(logits[1:], logits[0]), dims)


def over_positions(z: Tensor, dims: int) -> Tensor:
    """Return a number for each channel, (N, C), in a shape that spreads over the positions of a map."""
    for _ in range(dims):
        z = z.unsqueeze(-1)
    return z


@torch.fx.wrap
def spatial_descriptor(
    x: Tensor, kind: str = "both", order: str = "avg-max", weight: Tensor | None = None, dims: int = 2
) -> Tensor:
    """Return the map that the spatial convolution reads: (N, 2, H, W) for "both", otherwise (N, 1, H, W)."""
    dtype = accumulation_dtype(x.dtype)
    with full_precision(x):
        if kind == "conv":
            assert weight is not None  # the modules build the 1x1 kernel together with kind="conv"
            return _CONVOLUTIONS[dims](x.to(dtype), weight.to(dtype))
        maps = {}
        if kind in ("both", "avg"):
            maps["avg"] = x.mean(-dims - 1, keepdim=True, dtype=dtype)
        if kind in ("both", "max"):
            maps["max"] = first_index_max(x, -dims - 1).to(dtype)
        return torch.cat([maps[name] for name in order.split("-") if name in maps], dim=-dims - 1)


@torch.fx.wrap
def spatial_conv(descriptor: Tensor, weight: Tensor) -> Tensor:
    """Return the descriptor's convolution with "same" zero padding, (N, 1, H, W); its dimensions are the kernel's."""
    image = descriptor.device.type == "cpu" and descriptor.dim() == weight.dim() == 4
    if image and not _in_vmap() and not torch.compiler.is_exporting():
        # The weight gradient of a convolution with two input maps takes several times as long in the other layout.
        # In an exported program ExecuTorch's convolution refuses it.
        descriptor = descriptor.contiguous(memory_format=torch.channels_last)
    with full_precision(descriptor):
        convolution = _CONVOLUTIONS[weight.dim() - 2]
        return convolution(descriptor, weight.to(descriptor.dtype), padding=weight.shape[-1] // 2)


@torch.fx.wrap
def over_root(logits: Tensor, variance: Tensor, eps: float = 0.0) -> Tensor:
    """Return logits / sqrt(variance + eps) in the dtype of the logits."""
    variance = variance.to(logits.dtype)
    return logits * (variance + eps if eps else variance).rsqrt()


def _in_vmap() -> bool:
    # torch.vmap does not support memory formats.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@torch.fx.wrap
def gate(logits: Tensor, activation: str = "sigmoid", scale: Tensor | float | None = None) -> Tensor:
    """Return scale * activation(logits) in the dtype of the logits; scale 2 makes zero logits the exact identity."""
    value = ACTIVATIONS[activation](logits)
    return value if scale is None else value * scale


@torch.fx.wrap
def apply_gate(x: Tensor, value: Tensor) -> Tensor:
    """Return x times the gate rounded to x's dtype; a gate of exactly 1 leaves every bit of x as it was.

    The gate's gradient is a sum over a map, which float16 cannot hold: it stays in the gate's dtype.
    """
    rounded = value.to(x.dtype)
    if x.dtype is torch.float16 and value.requires_grad and not torch.jit.is_tracing():
        exact = (
            value + (rounded.to(value.dtype) - value).detach()
        )  # the rounded gate: the difference has no error
        return (x.to(value.dtype) * exact).to(x.dtype)  # nor has the product, so it is rounded once as well
    return x * rounded
