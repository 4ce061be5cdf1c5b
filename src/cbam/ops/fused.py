"""Call the operator: the dtypes and memory formats that it takes, and its autograd function.

In eager mode the kernels are called below autograd, which is faster than a derivative registered with torch.library; a
compiler or an exporter gets the registered operator, one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops import dispatch, gates
from cbam.ops.gradients import gradients, memory_format, to_keep
from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import TENSORS, NormBefore, OperatorConfig, Weights

_NO_NORM = NormBefore()


def attend(
    x: Tensor,
    weights: Weights,
    config: OperatorConfig,
    before: NormBefore = _NO_NORM,
    residual: Tensor | None = None,
    listeners: tuple[gates.Listener, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return the gated map, in x's memory format, and the spatial norm's batch statistics [mean, biased variance].

    Args:
        x: map (N, C, H, W) or (C, H, W), with any strides.
        weights: the gates' tensors, of any floating dtype.
        config: the numbers.
        before: a norm in front of the gates; x is then its input.
        residual: map of x's shape and dtype, with any strides, added to the gated one before the ReLU.
        listeners: get the gates, in eager mode.
    """
    if x.dim() == 3:
        added = residual if residual is None else residual.unsqueeze(0)
        y, stats = attend(x.unsqueeze(0), weights, config, before, added, listeners)
        return y.squeeze(0), stats
    x = _dense(x)
    dtype = accumulation_dtype(x.dtype)
    tensors = [
        w if w is None or (w.dtype is dtype and w.is_contiguous()) else w.to(dtype).contiguous()
        for w in (*weights, *before)
    ]
    tensors.append(residual if residual is None else residual.contiguous(memory_format=memory_format(x)))
    if torch.compiler.is_compiling():
        return _as_one_node(x, tensors, config)
    if listeners:
        return _listened_to(x, tensors, config, listeners)
    if _needs_gradient(x, tensors):
        return _Attend.apply(x, *tensors, config)
    y, _, _, stats = dispatch.operator_for(x).forward(x, *tensors, *config, False)
    return y, stats


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.config = arguments
        ctx.operator = dispatch.operator_for(tensors[0])
        y, saved, argmax, stats = ctx.operator.forward(*tensors, *ctx.config, True)
        ctx.save_for_backward(*to_keep(tensors, ctx.config, y), saved, argmax)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (TENSORS + 1)
        found = gradients(ctx.operator.backward, grad, ctx.saved_tensors, ctx.config, ctx.needs_input_grad)
        return (*found, None)


def _as_one_node(x: Tensor, tensors: Sequence[Any], config: OperatorConfig) -> tuple[Tensor, Tensor]:
    """Call the registered operator, whose derivative torch knows."""
    # An exported program keeps nothing: exporters that do not know the operator can then decompose it.
    keep = not dispatch.is_exporting() and _needs_gradient(x, tensors)
    y, _, _, stats = torch.ops.cbam.forward.default(x, *tensors, *config, keep)
    return y, stats


def _listened_to(
    x: Tensor, tensors: Sequence[Any], config: OperatorConfig, listeners: tuple[gates.Listener, ...]
) -> tuple[Tensor, Tensor]:
    """Return the same, and hand on the gates, which are among what is kept for backward."""
    operator = dispatch.operator_for(x)
    if not _needs_gradient(x, tensors):
        y, saved, _, stats = operator.forward(x, *tensors, *config, True)
    elif dispatch.is_registered(operator, x):
        y, saved, _, stats = torch.ops.cbam.forward.default(x, *tensors, *config, True)
    else:
        with torch.no_grad():
            _, saved, _, _ = operator.forward(x, *tensors, *config, True)
        y, stats = _Attend.apply(x, *tensors, config)
    gates.hand_on(listeners, x, **gates.gates_in(saved, x, Weights(*tensors[: len(Weights._fields)])))
    return y, stats


def _needs_gradient(x: Tensor, tensors: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or any(w is not None and w.requires_grad for w in tensors)
    )


def _dense(x: Tensor) -> Tensor:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
