"""Call the C++ operator: its autograd function, and the layouts and dtypes that it wants.

Nothing is kept for backward but the operator's input and small vectors. In eager mode the kernels are called
below autograd, which saves the detour over Python that a registered derivative costs; a compiler or an exporter
gets the registered operator, one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops import plain
from cbam.ops.plain import DIFFERENTIABLE, TENSORS, NormBefore, Settings, Weights
from cbam.ops.reference import accumulation_dtype

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_NO_NORM = NormBefore()


def attend(
    x: Tensor,
    weights: Weights,
    settings: Settings,
    before: NormBefore = _NO_NORM,
    batch_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gated map, in x's memory format, and the spatial norm's batch statistics [mean, biased variance].

    Args:
        x: map (N, C, H, W) or (C, H, W), on the CPU, dense or not.
        weights: the gates' tensors, of any floating dtype.
        settings: the numbers.
        before: a norm in front of the gates; x is then its input.
        batch_eps: if `before` holds the statistics of this very batch, the epsilon of that norm.
    """
    if x.dim() == 3:
        y, stats = attend(x.unsqueeze(0), weights, settings, before, batch_eps)
        return y.squeeze(0), stats
    x = _dense(x)
    dtype = accumulation_dtype(x.dtype)
    tensors = [
        w if w is None or (w.dtype is dtype and w.is_contiguous()) else w.to(dtype).contiguous()
        for w in (*weights, *before)
    ]
    if torch.compiler.is_compiling():
        return _as_one_node(x, tensors, settings)
    if torch.is_grad_enabled() and (
        x.requires_grad or any(w is not None and w.requires_grad for w in tensors)
    ):
        return _Attend.apply(x, *tensors, *settings, batch_eps)
    with _BelowAutograd():
        y, _, _, stats = torch.ops.cbam.forward.default(x, *tensors, *settings, False)
    return y, stats


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, batch_eps = arguments
        with _BelowAutograd():
            y, saved, where, stats = torch.ops.cbam.forward.default(*inputs, True)
        ctx.save_for_backward(*inputs[:TENSORS], saved, where)
        ctx.settings, ctx.batch_eps = inputs[TENSORS:], batch_eps
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (TENSORS + 6)
        found = gradients(grad, ctx.saved_tensors, ctx.settings, ctx.needs_input_grad, ctx.batch_eps)
        return (*found, None, None, None, None, None, None)


def gradients(
    grad: Tensor,
    kept: Sequence[Any],
    settings: Sequence[Any],
    needed: Sequence[bool],
    batch_eps: float | None = None,
    *,
    usable: bool = True,
) -> list[Tensor | None]:
    """Return the gradients of the operator's tensors, None where none is needed.

    Args:
        grad: of y.
        kept: x and the other tensors, then the two vectors that the forward pass kept.
        settings: the numbers.
        needed: which of the tensors need a gradient.
        batch_eps: as in `attend`.
        usable: whether the forward pass kept its vectors; without them it is done again, in plain operations.
    """
    tensors = kept[:TENSORS]
    if torch.is_grad_enabled() or not usable:  # a second derivative is wanted
        return _through_plain_operations(grad, tensors, settings, needed, batch_eps)
    x = tensors[0]
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grad = grad.to(x.dtype).contiguous(memory_format=layout)
    with _BelowAutograd():
        computed = torch.ops.cbam.backward.default(grad, *kept, *settings, batch_eps is not None)
    found: list[Tensor | None] = [None] * TENSORS
    for i, gradient in zip(DIFFERENTIABLE, computed, strict=True):
        if needed[i]:
            found[i] = gradient.view_as(tensors[i])
    return found


def _through_plain_operations(
    grad: Tensor,
    tensors: Sequence[Any],
    settings: Sequence[Any],
    needed: Sequence[bool],
    batch_eps: float | None,
) -> list[Tensor | None]:
    """Return the gradients by way of `plain.forward`, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a tensor computed from another one is still an input of its own here.
        inputs = [t.view_as(t) if need else t for t, need in zip(tensors, needed, strict=False)]
        weights, before = Weights(*inputs[1:12]), NormBefore(*inputs[12:])
        y, _ = plain.forward(inputs[0], weights, before, Settings(*settings), batch_eps)
        wanted = [i for i in range(TENSORS) if needed[i]]
        computed = torch.autograd.grad(
            y, [inputs[i] for i in wanted], grad, create_graph=again, allow_unused=True
        )
    found: list[Tensor | None] = [None] * TENSORS
    for i, gradient in zip(wanted, computed, strict=True):
        found[i] = gradient
    return found


def _as_one_node(x: Tensor, tensors: Sequence[Any], settings: Settings) -> tuple[Tensor, Tensor]:
    """Call the registered operator, whose derivative torch knows."""
    # An exported program is to be opened by exporters that know no such operator, so it keeps nothing.
    keep = (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and (x.requires_grad or any(w is not None and w.requires_grad for w in tensors))
    )
    y, _, _, stats = torch.ops.cbam.forward.default(x, *tensors, *settings, keep)
    return y, stats


def _dense(x: Tensor) -> Tensor:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
