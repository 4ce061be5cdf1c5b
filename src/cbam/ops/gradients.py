"""The gradients of the operator's tensors, from what its forward call kept, or through plain torch.

Backward keeps the operator's input and small vectors, and its output where that ends in a ReLU; nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops import plain
from cbam.ops.signature import (
    DIFFERENTIABLE,
    KEPT_NUMBERS,
    RESIDUAL,
    TENSORS,
    ForwardArguments,
    OperatorConfig,
)


def to_keep(tensors: Sequence[Any], config: OperatorConfig, y: Tensor) -> tuple[Tensor | None, ...]:
    """Return the maps and weights that backward needs: the output of a ReLU in place of the residual."""
    return (*tensors[:RESIDUAL], y if config.relu else None)


def gradients(
    backward: Callable[..., Sequence[Tensor]],
    grad: Tensor,
    kept: Sequence[Any],
    config: OperatorConfig,
    needed: Sequence[bool],
    *,
    usable: bool = True,
) -> list[Tensor | None]:
    """Return the gradients of the operator's tensors, None where none is needed.

    Args:
        backward: a backend's; takes the arguments of `cbam::backward`.
        grad: of y.
        kept: what `to_keep` returned, then the two vectors that the forward call kept.
        config: the numbers.
        needed: which of the tensors need a gradient.
        usable: whether the forward call kept its vectors; without them it is repeated in plain operations.
    """
    tensors = kept[:TENSORS]
    if torch.is_grad_enabled() or not usable:  # for a second derivative
        return through_plain_operations(grad, tensors, config, needed)
    x = tensors[0]
    dense = grad
    if grad.dtype is not x.dtype or grad.stride() != x.stride():
        dense = grad.to(x.dtype).contiguous(memory_format=memory_format(x))
    computed = backward(dense, *kept, *config[:KEPT_NUMBERS])
    found: list[Tensor | None] = [None] * TENSORS
    for i, gradient in zip(DIFFERENTIABLE, computed, strict=True):
        if needed[i]:
            found[i] = grad if i == RESIDUAL and not config.relu else like_its_tensor(gradient, tensors[i])
    return found


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of a dense map."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def like_its_tensor(gradient: Tensor, tensor: Tensor) -> Tensor:
    """Return a weight's gradient in the shape and the strides of the weight."""
    # A 1 x 1 weight in channels_last has other strides for the same memory. If its gradient had not, autograd would
    # keep it so, and DistributedDataParallel would warn, and copy it in every step.
    if gradient.shape == tensor.shape:
        return gradient
    if gradient.dim() == 1 and tensor.is_contiguous():
        return gradient.as_strided(tensor.shape, tensor.stride())
    return gradient.view_as(tensor)


def through_plain_operations(
    grad: Tensor,
    tensors: Sequence[Any],
    config: OperatorConfig,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients by way of `plain.forward`, so that they can be differentiated again.

    Args:
        grad: of y.
        tensors: what `to_keep` returned.
        config: the numbers.
        needed: which of the tensors need a gradient.
    """
    again = torch.is_grad_enabled()
    *tensors, out = tensors
    if out is not None:
        grad = torch.ops.aten.threshold_backward(grad, out.detach(), 0)
    with torch.enable_grad():
        # Views, so that a tensor computed from another one is still an input of its own here.
        inputs = [t.view_as(t) if need else t for t, need in zip(tensors, needed, strict=False)]
        call = ForwardArguments.parse((*inputs, None, *config._replace(relu=False), True))
        y, _ = plain.forward(call.x, call.weights, call.before, call.config)
        wanted = [i for i in range(RESIDUAL) if needed[i]]
        computed: Sequence[Tensor | None] = ()
        if wanted:
            computed = torch.autograd.grad(
                y, [inputs[i] for i in wanted], grad, create_graph=again, allow_unused=True
            )
    found: list[Tensor | None] = [None] * TENSORS
    found[RESIDUAL] = grad if needed[RESIDUAL] else None
    for i, gradient in zip(wanted, computed, strict=True):
        found[i] = gradient
    return found
