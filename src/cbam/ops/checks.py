"""Checks of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.errors import CBAMError


@torch.fx.wrap
def check_feature_map(x: Tensor, who: str, channels: int | None = None) -> None:
    """Raise unless x is a floating-point (N, C, H, W) or (C, H, W) map with the expected number of channels."""
    if not isinstance(x, Tensor):
        raise CBAMError(f"{who} expects a tensor of shape (N, C, H, W), got {type(x).__name__}.")
    if x.dim() not in (3, 4):
        raise CBAMError(
            f"{who} expects a feature map of shape (N, C, H, W) or (C, H, W),"
            f" got {x.dim()} dimensions: {tuple(x.shape)}."
        )
    if not x.dtype.is_floating_point:
        raise CBAMError(f"{who} expects a floating-point map, got {x.dtype}. Convert it first: x.float().")
    if channels is not None and x.shape[-3] != channels:
        raise CBAMError(
            f"{who} was built for {channels} channels, but the map has {x.shape[-3]}: {tuple(x.shape)}."
            f" Build it with in_channels={x.shape[-3]}, or pass the map as (N, C, H, W), channels before height."
        )
    if x.shape[-2] == 0 or x.shape[-1] == 0:
        raise CBAMError(f"{who} needs a map of at least 1 x 1, got {tuple(x.shape)}.")
