"""Call the operator, in C++ or Triton: its autograd function, and the layouts and dtypes that it wants.

Nothing is kept for backward but the operator's input and small vectors, and its output where that ends in a ReLU.
In eager mode the kernels are called below autograd, which saves the detour over Python that a registered derivative
costs; a compiler or an exporter gets the registered operator, one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops import cpp, dispatch, plain
from cbam.ops.plain import DIFFERENTIABLE, TENSORS, NormBefore, Settings, Weights
from cbam.ops.reference import accumulation_dtype

_NO_NORM = NormBefore()
_RESIDUAL = TENSORS - 1


def attend(
    x: Tensor,
    weights: Weights,
    settings: Settings,
    before: NormBefore = _NO_NORM,
    batch_eps: float | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gated map, in x's memory format, and the spatial norm's batch statistics [mean, biased variance].

    Args:
        x: map (N, C, H, W) or (C, H, W), dense or not.
        weights: the gates' tensors, of any floating dtype.
        settings: the numbers.
        before: a norm in front of the gates; x is then its input.
        batch_eps: if `before` holds the statistics of this very batch, the epsilon of that norm.
        residual: map of x's shape and dtype that is added to the gated one, in any layout; then comes the ReLU, if
            the settings ask for it.
    """
    if x.dim() == 3:
        rest = residual if residual is None else residual.unsqueeze(0)
        y, stats = attend(x.unsqueeze(0), weights, settings, before, batch_eps, rest)
        return y.squeeze(0), stats
    x = _dense(x)
    dtype = accumulation_dtype(x.dtype)
    tensors = [
        w if w is None or (w.dtype is dtype and w.is_contiguous()) else w.to(dtype).contiguous()
        for w in (*weights, *before)
    ]
    tensors.append(residual if residual is None else residual.contiguous(memory_format=_layout(x)))
    if torch.compiler.is_compiling():
        return _as_one_node(x, tensors, settings)
    if torch.is_grad_enabled() and (
        x.requires_grad or any(w is not None and w.requires_grad for w in tensors)
    ):
        return _Attend.apply(x, *tensors, *settings, batch_eps)
    y, _, _, stats = dispatch.operator_for(x).forward(x, *tensors, *settings, False)
    return y, stats


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, batch_eps = arguments
        ctx.operator = dispatch.operator_for(inputs[0])
        y, saved, where, stats = ctx.operator.forward(*inputs, True)
        ctx.settings, ctx.batch_eps = Settings(*inputs[TENSORS:]), batch_eps
        ctx.save_for_backward(*to_keep(inputs, ctx.settings, y), saved, where)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (TENSORS + len(ctx.settings) + 1)
        found = gradients(
            grad, ctx.saved_tensors, ctx.settings, ctx.needs_input_grad, ctx.batch_eps, ctx.operator.backward
        )
        return (*found, *[None] * (len(ctx.settings) + 1))


def to_keep(inputs: Sequence[Any], settings: Settings, y: Tensor) -> tuple[Tensor | None, ...]:
    """Return the maps and weights that backward needs: the output of a ReLU takes the place of the residual."""
    return (*inputs[: TENSORS - 1], y if settings.relu else None)


def gradients(
    grad: Tensor,
    kept: Sequence[Any],
    settings: Settings,
    needed: Sequence[bool],
    batch_eps: float | None = None,
    backward: Callable[..., Sequence[Tensor]] = cpp.backward,
    *,
    usable: bool = True,
) -> list[Tensor | None]:
    """Return the gradients of the operator's tensors, None where none is needed.

    Args:
        grad: of y.
        kept: what `to_keep` returned, then the two vectors that the forward pass kept.
        settings: the numbers.
        needed: which of the tensors need a gradient.
        batch_eps: as in `attend`.
        backward: the operator's; by default torch looks for it by the map's device.
        usable: whether the forward pass kept its vectors; without them it is done again, in plain operations.
    """
    tensors = kept[:TENSORS]
    if torch.is_grad_enabled() or not usable:  # a second derivative is wanted
        return _through_plain_operations(grad, tensors, settings, needed, batch_eps)
    x = tensors[0]
    dense = grad.to(x.dtype).contiguous(memory_format=_layout(x))
    computed = backward(dense, *kept, *settings[:-1], batch_eps is not None)
    found: list[Tensor | None] = [None] * TENSORS
    for i, gradient in zip(DIFFERENTIABLE, computed, strict=True):
        if needed[i]:
            found[i] = grad if i == _RESIDUAL and not settings.relu else _in_the_form_of(tensors[i], gradient)
    return found


def _in_the_form_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    # In channels_last a 1 x 1 weight lies in memory as ever, but has other strides. autograd keeps a gradient without
    # them, and DistributedDataParallel then warns, and copies it in every step.
    if gradient.dim() == 1 and tensor.is_contiguous():
        return gradient.as_strided(tensor.shape, tensor.stride())
    return gradient.view_as(tensor)


def _through_plain_operations(
    grad: Tensor,
    tensors: Sequence[Any],
    settings: Settings,
    needed: Sequence[bool],
    batch_eps: float | None,
) -> list[Tensor | None]:
    """Return the gradients by way of `plain.forward`, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    *tensors, out = tensors
    if out is not None:
        grad = torch.ops.aten.threshold_backward(grad, out.detach(), 0)
    with torch.enable_grad():
        # Views, so that a tensor computed from another one is still an input of its own here.
        inputs = [t.view_as(t) if need else t for t, need in zip(tensors, needed, strict=False)]
        weights, before = Weights(*inputs[1:12]), NormBefore(*inputs[12:])
        y, _ = plain.forward(inputs[0], weights, before, settings._replace(relu=False), batch_eps)
        wanted = [i for i in range(_RESIDUAL) if needed[i]]
        computed: Sequence[Tensor | None] = ()
        if wanted:
            computed = torch.autograd.grad(
                y, [inputs[i] for i in wanted], grad, create_graph=again, allow_unused=True
            )
    found: list[Tensor | None] = [None] * TENSORS
    found[_RESIDUAL] = grad if needed[_RESIDUAL] else None
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


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _dense(x: Tensor) -> Tensor:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
