"""What `cbam::forward` computes, written with `cbam.ops.reference`: for its second derivative and for export.

All functions take the operator's arguments in the operator's order and with its numbers for the settings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cbam.ops import reference

# The operator's numbers.
POOLINGS = {"avg": 1, "max": 2, "both": 3}
DESCRIPTORS = {
    ("avg", "avg-max"): 1, ("avg", "max-avg"): 1, ("max", "avg-max"): 2, ("max", "max-avg"): 2,
    ("both", "avg-max"): 3, ("both", "max-avg"): 4,
}  # fmt: skip
ACTIVATIONS = {"sigmoid": 0, "hardsigmoid": 1}

TENSORS = 17  # x, the gates' 11, 4 of the norm in front, the residual
# Those that have a gradient: x, w0, b0, w1, b1, kernel, norm weight and bias, weight and bias of the norm in front, the
# residual.
DIFFERENTIABLE = (0, 1, 2, 3, 4, 6, 7, 8, 12, 13, 16)

_POOLING_NAMES = {number: name for name, number in POOLINGS.items()}
_DESCRIPTOR_NAMES = {number: names for names, number in DESCRIPTORS.items()}
_ACTIVATION_NAMES = {number: name for name, number in ACTIVATIONS.items()}


class Weights(NamedTuple):
    """The tensors of both gates; the channel gate is there if w0 is, the spatial gate if kernel is."""

    w0: Tensor | None = None
    b0: Tensor | None = None
    w1: Tensor | None = None
    b1: Tensor | None = None
    channel_scale: Tensor | None = None
    kernel: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_mean: Tensor | None = None
    norm_var: Tensor | None = None
    spatial_scale: Tensor | None = None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """The tensors that the operator computes no gradient for."""
        return self.channel_scale, self.norm_mean, self.norm_var, self.spatial_scale


class NormBefore(NamedTuple):
    """A batch norm in front of the gates, u -> (u - mean) * invstd * weight + bias, one number per channel each."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    invstd: Tensor | None = None


class Settings(NamedTuple):
    """The operator's numbers; pooling and descriptor are 0 where their gate is absent, relu needs a residual."""

    pooling: int = 0
    descriptor: int = 0
    activation: int = 0
    norm_training: bool = False
    norm_eps: float = 1e-5
    relu: bool = False


def forward(
    x: Tensor,
    weights: Weights,
    before: NormBefore,
    settings: Settings,
    batch_eps: float | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gated map, differentiable as often as one likes, and the spatial norm's batch statistics.

    Args:
        x: map (N, C, H, W).
        weights: the gates' tensors.
        before: the norm in front of them.
        settings: the numbers.
        batch_eps: if `before` holds the statistics of this very batch, the epsilon of that norm: they are then
            computed again, so that derivatives go through them.
        residual: what is added to the gated map, of its shape; the ReLU, if there is one, follows.

    Returns:
        y and [mean, biased variance], the latter empty unless the norm takes batch statistics.
    """
    if before.mean is not None:
        x = _normalised(x, before, batch_eps)
    activation = _ACTIVATION_NAMES[settings.activation]
    w = weights
    if w.w0 is not None:
        assert w.w1 is not None
        logits = reference.channel_logits(x, w.w0, w.b0, w.w1, w.b1, _POOLING_NAMES[settings.pooling])
        x = reference.apply_gate(x, reference.gate(logits, activation, w.channel_scale))
    stats = x.new_empty(0, dtype=reference.accumulation_dtype(x.dtype))
    if w.kernel is not None:
        maps = reference.spatial_descriptor(x, *_DESCRIPTOR_NAMES[settings.descriptor])
        z = reference.spatial_conv(maps, w.kernel)
        if settings.norm_training:
            stats = torch.stack([z.mean(), z.var(correction=0)]).detach()
        if settings.norm_training or w.norm_mean is not None:
            running = (None, None) if settings.norm_training else (w.norm_mean, w.norm_var)
            z = F.batch_norm(
                z, *running, w.norm_weight, w.norm_bias, settings.norm_training, 0.0, settings.norm_eps
            )
        x = reference.apply_gate(x, reference.gate(z, activation, w.spatial_scale))
    if residual is not None:
        x = x + residual
    if settings.relu:
        x = F.relu(x)
    return x, stats


def attention_multiply_adds(x: Any, w0: Any, kernel: Any, pooling: int) -> int:
    """Count the multiply-adds of the MLP and of the convolution, from the shapes of the operator's arguments.

    >>> attention_multiply_adds((2, 64, 7, 7), (4, 64), None, 3)  # two pooled vectors, two layers
    2048
    """
    n, c, height, width = x
    count = 0
    if w0 is not None:
        count += n * (2 if pooling == 3 else 1) * 2 * c * w0[0]
    if kernel is not None:
        count += n * height * width * kernel[1] * kernel[2] * kernel[3]
    return count


def _normalised(u: Tensor, before: NormBefore, batch_eps: float | None) -> Tensor:
    """Return the map after the norm in front, rounded to the dtype of u."""
    mean, invstd = before.mean, before.invstd
    assert mean is not None
    assert invstd is not None
    values = u.to(mean.dtype)
    if batch_eps is not None:
        mean = values.mean((0, 2, 3))
        invstd = (values.var((0, 2, 3), correction=0) + batch_eps).rsqrt()
    alpha = invstd if before.weight is None else invstd * before.weight
    beta = -mean * alpha if before.bias is None else before.bias - mean * alpha
    return (values * alpha[:, None, None] + beta[:, None, None]).to(u.dtype)
