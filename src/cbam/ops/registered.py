"""Call `torch.ops.cbam` below autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call `cbam::forward`."""
    with _BelowAutograd():
        return torch.ops.cbam.forward.default(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Call `cbam::backward`."""
    with _BelowAutograd():
        return torch.ops.cbam.backward.default(*arguments)
