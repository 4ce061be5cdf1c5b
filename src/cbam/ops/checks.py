"""Checks of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.errors import CBAMError
from cbam.ops.dims import SIZES, batched


@torch.fx.wrap
def check_feature_map(x: Tensor, who: str, channels: int | None = None, dims: int = 2) -> None:
    """Raise unless x is a floating-point map with the expected number of channels, and only one reading.

    Args:
        x: (N, C, ...), or one map (C, ...) where `channels` tells which axis is C.
        who: for messages.
        channels: C; None: any.
        dims: how many sizes follow C.
    """
    if not isinstance(x, Tensor):
        raise CBAMError(f"{who} expects a tensor of shape {batched(dims)}, got {type(x).__name__}.")
    if x.dim() not in (dims + 1, dims + 2):
        raise CBAMError(
            f"{who} expects a feature map of shape {batched(dims)} or (C, {SIZES[dims]}),"
            f" got {x.dim()} dimensions: {tuple(x.shape)}.{_other_dims(x)}"
        )
    if not x.dtype.is_floating_point:
        do = "Convert it first: x.float()."
        if x.is_quantized:
            do = (
                "Quantise in graph mode, which leaves attention in floating point: prepare_fx and convert_fx of"
                " torch.ao.quantization.quantize_fx."
            )
        raise CBAMError(f"{who} expects a floating-point map, got {x.dtype}. {do}")
    if x.dim() == dims + 1:
        _check_single(x, who, channels, dims)
    elif channels is not None and x.shape[1] != channels:
        given = f"{who} was built for {channels} channels, but the map has {x.shape[1]}: {tuple(x.shape)}."
        if x.shape[-1] == channels:
            raise CBAMError(f"{given} Its last axis has {channels}: pass channels first, x.movedim(-1, 1).")
        raise CBAMError(
            f"{given} Build it with in_channels={x.shape[1]}, or pass the map as {batched(dims)}."
        )
    if 0 in x.shape[-dims:]:
        raise CBAMError(f"{who} needs a map of at least {' x '.join('1' * dims)}, got {tuple(x.shape)}.")


def _check_single(x: Tensor, who: str, channels: int | None, dims: int) -> None:
    """Raise unless a map without a batch can be nothing else: one (C, H, W) has as many axes as many (N, C, L)."""
    shape, one = tuple(x.shape), f"(C, {SIZES[dims]})"
    many = batched(dims - 1) if dims > 1 else "(N, C)"
    fewer = f", or build it with dims={dims - 1} for {many}" if dims > 1 else ""
    if channels is None:
        raise CBAMError(
            f"{who} without in_channels cannot tell one map {one} from many {many}, given {shape}."
            f" Pass one map as x[None]{fewer}."
        )
    if x.shape[1] == channels:
        reading = f"has its {channels} channels where {many} has them"
        if x.shape[0] == channels:
            reading = f"may be one map {one} or many {many}"
        raise CBAMError(f"{who} with dims={dims}: {shape} {reading}. Pass one map as x[None]{fewer}.")
    if x.shape[0] != channels:
        raise CBAMError(
            f"{who} was built for {channels} channels, but the map has {x.shape[0]}, as {one}: {shape}."
            f" Pass {batched(dims)}, or build it with in_channels={x.shape[0]}."
        )


def _other_dims(x: Tensor) -> str:
    fits = x.dim() - 2
    return f" For maps {batched(fits)} build it with dims={fits}." if fits in SIZES else ""
