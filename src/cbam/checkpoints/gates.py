"""The weights of one CBAM block, in no particular format; a spatial gate with a norm, or with a bias instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NORM = ("weight", "bias", "running_mean", "running_var")
EPS = 1e-5  # of every batch norm in the formats that have one


@dataclass(frozen=True)
class Gates:
    """The weights of one block.

    Args:
        first, last: (h, C) and (C, h), the MLP.
        first_bias, last_bias: (h,) and (C,), or None.
        kernel: (1, 2, k, k), or with `dims` times k, with the plane that reads the average first; None without a
            spatial gate.
        kernel_bias: (1,), or None.
        norm: "weight", "bias", "running_mean", "running_var", each (1,), and "num_batches_tracked"; or None.
        adds_input: the block returns its gated input plus its input.
        dims: 1 for maps (N, C, L), 2, or 3 for (N, C, D, H, W); None: the weights fit any.
    """

    first: Tensor
    last: Tensor
    first_bias: Tensor | None = None
    last_bias: Tensor | None = None
    kernel: Tensor | None = None
    kernel_bias: Tensor | None = None
    norm: Mapping[str, Tensor] | None = None
    adds_input: bool = False
    dims: int | None = 2

    @property
    def channels(self) -> int:
        """C."""
        return self.first.shape[1]

    @property
    def hidden(self) -> int:
        """The hidden width h."""
        return self.first.shape[0]

    @property
    def kernel_size(self) -> int | None:
        """k."""
        return None if self.kernel is None else self.kernel.shape[-1]

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the MLP has biases."""
        return self.first_bias is not None


def with_norm(gates: Gates) -> Gates:
    """Express the convolution's bias, or its absence, as a batch norm: the same outputs in eval mode.

    weight sqrt(1 + eps), bias b, mean 0, variance 1: (z - 0) / sqrt(1 + eps) * sqrt(1 + eps) + b.

    >>> gates = Gates(torch.zeros(1, 16), torch.zeros(16, 1), kernel=torch.ones(1, 2, 7, 7))
    >>> with_norm(gates).norm["bias"]
    tensor([0.])
    """
    if gates.norm is not None or gates.kernel is None:
        return gates
    one = torch.ones(1, dtype=gates.kernel.dtype)
    bias = torch.zeros_like(one) if gates.kernel_bias is None else gates.kernel_bias.clone()
    norm = {
        "weight": one * (1 + EPS) ** 0.5,
        "bias": bias,
        "running_mean": torch.zeros_like(one),
        "running_var": one,
        "num_batches_tracked": torch.tensor(0),
    }
    return replace(gates, kernel_bias=None, norm=norm)


def without_norm(gates: Gates) -> Gates:
    """Fold the batch norm into the convolution's kernel and bias: the same outputs in eval mode."""
    if gates.norm is None or gates.kernel is None:
        return gates
    weight, bias, mean, var = (gates.norm[name].double() for name in NORM)
    scale = weight / (var + EPS).sqrt()
    before = torch.zeros_like(mean) if gates.kernel_bias is None else gates.kernel_bias.double()
    kernel = (gates.kernel.double() * scale).to(gates.kernel.dtype)
    shift = ((before - mean) * scale + bias).to(gates.kernel.dtype)
    return replace(gates, kernel=kernel, kernel_bias=shift, norm=None)


def is_zero(tensor: Tensor | None) -> bool:
    """Return whether a bias is absent or zero."""
    return tensor is None or not bool(tensor.count_nonzero())
