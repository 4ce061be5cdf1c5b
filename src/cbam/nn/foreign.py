"""Use any `nn.Module` that keeps the shape of a map as an attention module."""

from __future__ import annotations

from torch import Tensor, nn

from cbam.nn.base import AttentionModule
from cbam.ops import gates


class ForeignAttention(AttentionModule):
    """An attention module that calls `module`, and can be switched off by `cbam.disabled`.

    Args:
        module: takes a map (N, C, H, W) and returns one of the same shape and dtype. Its weights are in the state
            dict behind `module.`.
        in_channels: C.
        dims: how many sizes of its maps follow C.

    >>> import torch
    >>> block = ForeignAttention(nn.Hardswish(), 4)
    >>> block.enabled = False
    >>> block(torch.ones(1, 4, 2, 2)).sum()
    tensor(16.)
    """

    def __init__(self, module: nn.Module, in_channels: int, dims: int = 2):
        super().__init__()
        self.dims = dims
        self.in_channels = in_channels
        self.module = module

    def attend_eagerly(self, x: Tensor) -> Tensor:
        """Return module(x)."""
        if self.listeners:
            gates.hand_on(self.listeners, x, dims=self.dims)  # its kind knows them
        return self.module(x)
