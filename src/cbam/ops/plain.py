"""What `cbam::forward` computes, written with `cbam.ops.reference`: for its second derivative and for export."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cbam.ops import reference
from cbam.ops.signature import (
    ACTIVATIONS,
    DESCRIPTORS,
    POOLED_ROWS,
    POOLINGS,
    NormBefore,
    OperatorConfig,
    Weights,
)

_POOLING_NAMES = {number: name for name, number in POOLINGS.items()}
_DESCRIPTOR_NAMES = {number: names for names, number in DESCRIPTORS.items()}
_ACTIVATION_NAMES = {number: name for name, number in ACTIVATIONS.items()}


def forward(
    x: Tensor,
    weights: Weights,
    before: NormBefore,
    config: OperatorConfig,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gated map, differentiable any number of times, and the spatial norm's batch statistics.

    Args:
        x: map (N, C, H, W).
        weights: the gates' tensors.
        before: the norm in front of them.
        config: the numbers; with `pre_training` the statistics of the norm in front are computed again, so that
            derivatives go through them.
        residual: map added to the gated one, before the ReLU if there is one.

    Returns:
        y and [mean, biased variance], the latter empty unless the norm takes batch statistics.
    """
    if before.mean is not None:
        x = _normalised(x, before, config)
    activation = _ACTIVATION_NAMES[config.activation]
    w = weights
    if w.w0 is not None:
        assert w.w1 is not None
        logits = reference.channel_logits(x, w.w0, w.b0, w.w1, w.b1, _POOLING_NAMES[config.pooling])
        x = reference.apply_gate(x, reference.gate(logits, activation, w.channel_scale))
    stats = x.new_empty(0, dtype=reference.accumulation_dtype(x.dtype))
    if w.kernel is not None:
        maps = reference.spatial_descriptor(x, *_DESCRIPTOR_NAMES[config.descriptor])
        z = reference.spatial_conv(maps, w.kernel)
        if config.norm_training:
            stats = torch.stack([z.mean(), z.var(correction=0)]).detach()
        if config.norm_training or w.norm_mean is not None:
            running = (None, None) if config.norm_training else (w.norm_mean, w.norm_var)
            z = F.batch_norm(
                z, *running, w.norm_weight, w.norm_bias, config.norm_training, 0.0, config.norm_eps
            )
        elif w.norm_var is not None:
            z = reference.over_root(z, w.norm_var, config.norm_eps)
        x = reference.apply_gate(x, reference.gate(z, activation, w.spatial_scale))
    if residual is not None:
        x = x + residual
    if config.relu:
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
        count += n * len(POOLED_ROWS[pooling]) * 2 * c * w0[0]
    if kernel is not None:
        rows = 1 if height == 1 < width else kernel[2]  # a signal, or other rows that meet nothing
        count += n * height * width * kernel[1] * rows * kernel[3]
    return count


def _normalised(u: Tensor, before: NormBefore, config: OperatorConfig) -> Tensor:
    """Return the map after the norm in front, rounded to the dtype of u."""
    mean, var = before.mean, before.var
    assert mean is not None
    assert var is not None
    values = u.to(mean.dtype)
    if config.pre_training:
        mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
    invstd = (var + config.pre_eps).rsqrt()
    alpha = invstd if before.weight is None else invstd * before.weight
    beta = -mean * alpha if before.bias is None else before.bias - mean * alpha
    return (values * alpha[:, None, None] + beta[:, None, None]).to(u.dtype)
