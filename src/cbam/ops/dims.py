"""Maps of one, two and three dimensions: signals (N, C, L), images (N, C, H, W), volumes and video (N, C, D, H, W).

All that a gate does, but for the spatial convolution, sees a map as channels and positions. So the operator, which
takes images, computes other maps as images of one row, (N, C, 1, positions); their spatial convolution is its own
only where that is along the row.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cbam.errors import CBAMError
from cbam.ops import fused, gates
from cbam.ops.signature import OperatorConfig, Weights

SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}


def check_dims(dims: Any) -> int:
    """Return `dims` if it is 1, 2 or 3.

    >>> check_dims(3)
    3
    """
    if isinstance(dims, bool) or dims not in SIZES:
        raise CBAMError(
            f"dims must be 1 for maps (N, C, L), 2 for (N, C, H, W) or 3 for (N, C, D, H, W); got {dims!r}."
        )
    return int(dims)


def batched(dims: int) -> str:
    """Return the shape of a batch of maps, for messages.

    >>> batched(3)
    '(N, C, D, H, W)'
    """
    return f"(N, C, {SIZES[dims]})"


def attend(
    x: Tensor,
    weights: Weights,
    config: OperatorConfig,
    dims: int,
    listeners: tuple[gates.Listener, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return what `fused.attend` returns, for a map of any dimensions.

    Args:
        x: map (N, C, ...) or (C, ...) with `dims` sizes.
        weights: of the gates; the spatial kernel is `as_image_kernel`'s.
        config: the numbers.
        dims: 1, 2 or 3.
        listeners: get the gates.
    """
    if dims == 2:
        return fused.attend(x, weights, config, listeners=listeners)
    row = x.flatten(-dims).unsqueeze(-2)
    y, stats = fused.attend(row, weights, config, listeners=gates.of_map(listeners, x, dims))
    return y.reshape(x.shape), stats


def as_image_kernel(kernel: Tensor, dims: int) -> Tensor | None:
    """Return a spatial kernel (1, m, k, ...) as the operator takes it, (1, m, k, k); None if it cannot.

    >>> import torch
    >>> as_image_kernel(torch.ones(1, 1, 3), 1)
    tensor([[[[0., 0., 0.],
              [1., 1., 1.],
              [0., 0., 0.]]]])
    """
    if dims == 1:
        half = kernel.shape[-1] // 2
        return F.pad(kernel.unsqueeze(-2), (0, 0, half, half))
    return kernel if dims == 2 else None
