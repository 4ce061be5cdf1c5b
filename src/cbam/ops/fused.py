"""Call the operator: the dtypes and memory formats that it takes, and its autograd function.

In eager mode the kernels are called below autograd, which is faster than a derivative registered with torch.library; a
compiler or an exporter gets the registered operator, one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cbam.ops import dispatch, gates
from cbam.ops.backend import Backend
from cbam.ops.gradients import gradients, memory_format, to_keep
from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import CONSTANTS, TENSORS, NormBefore, OperatorConfig, Weights

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
    added = residual if residual is None else residual.contiguous(memory_format=memory_format(x))
    if torch.compiler.is_compiling():
        return _as_one_node([x, *tensors, added], config)
    if listeners:
        return _listened_to([x, *tensors, added], config, listeners)
    return run(dispatch.operator_for(x), [x, *tensors, added], config)


def fit(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    """Return whether the operator takes these tensors as they are.

    Args:
        x: map (N, C, H, W) that the operator takes.
        tensors: of the gates and of the norm in front, in the operator's order.
    """
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return False
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    on_cpu, device = x.is_cpu, x.device
    for w in tensors:
        if w is not None and not (
            w.dtype is dtype
            and (type(w) is nn.Parameter or type(w) is Tensor)
            and (w.is_cpu if on_cpu else w.device == device)
            and w.is_contiguous()
        ):
            return False
    for i in CONSTANTS:
        w = tensors[i]
        if w is not None and w.requires_grad:
            return False
    return True


def run(operator: Backend, tensors: list[Any], config: OperatorConfig) -> tuple[Tensor, Tensor]:
    """Call a backend in eager mode, below autograd or through it; return the map and the batch statistics.

    Args:
        operator: the backend.
        tensors: the map, then all others in the operator's order, as it takes them.
        config: the numbers.
    """
    wanted = _wanted(tensors)
    if wanted:
        call = _Call(operator, tensors, config, wanted)
        y = _apply(call, *[tensors[i] for i in wanted])
        assert call.stats is not None
        return y, call.stats
    y, _, _, stats = operator.forward(*tensors, *config, False)
    return y, stats


class _Call:
    """A call on its way through autograd, which gets the tensors that want a gradient and nothing else."""

    __slots__ = ("config", "operator", "saved", "stats", "tensors", "wanted")

    def __init__(self, operator: Backend, tensors: list[Any], config: OperatorConfig, wanted: list[int]):
        self.operator, self.tensors, self.config, self.wanted = operator, tensors, config, wanted
        self.saved: Tensor | None = None
        self.stats: Tensor | None = None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *wanted: Tensor) -> Tensor:
        tensors, config = call.tensors, call.config
        y, saved, argmax, call.stats = call.operator.forward(*tensors, *config, True)
        call.saved = saved
        kept = to_keep(tensors, config, y)
        given = [i for i, t in enumerate(kept) if t is not None]
        ctx.save_for_backward(*[kept[i] for i in given], saved, argmax)
        ctx.call = call.operator, config, call.wanted, given
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operator, config, wanted, given = ctx.call
        *tensors, saved, argmax = ctx.saved_tensors
        kept: list[Any] = [None] * TENSORS
        for i, t in zip(given, tensors, strict=True):
            kept[i] = t
        needed = [False] * TENSORS
        for i, need in zip(wanted, ctx.needs_input_grad[1:], strict=True):
            needed[i] = need
        found = gradients(operator.backward, grad, [*kept, saved, argmax], config, needed)
        return (None, *[found[i] for i in wanted])


# As `_Attend.apply`, without its look for torch.func transforms, where there is no operator.
_apply = super(torch.autograd.Function, _Attend).apply


def _as_one_node(tensors: Sequence[Any], config: OperatorConfig) -> tuple[Tensor, Tensor]:
    """Call the registered operator, whose derivative torch knows."""
    # An exported program keeps nothing: exporters that do not know the operator can then decompose it.
    keep = not dispatch.is_exporting() and bool(_wanted(tensors))
    y, _, _, stats = torch.ops.cbam.forward.default(*tensors, *config, keep)
    return y, stats


def _listened_to(
    tensors: list[Any], config: OperatorConfig, listeners: tuple[gates.Listener, ...]
) -> tuple[Tensor, Tensor]:
    """Return the same as `run`, and hand on the gates, which are among what is kept for backward."""
    operator = dispatch.operator_for(tensors[0])
    call = _Call(operator, tensors, config, _wanted(tensors))
    if call.wanted:
        y = _apply(call, *[tensors[i] for i in call.wanted])
    else:
        y, call.saved, _, call.stats = operator.forward(*tensors, *config, True)
    assert call.saved is not None
    assert call.stats is not None
    x, weights = tensors[0], Weights(*tensors[1 : 1 + len(Weights._fields)])
    found = gates.gates_in(call.saved, x, weights)
    gates.hand_on(listeners, x, found.get("channel"), found.get("spatial"))
    return y, call.stats


def _wanted(tensors: Sequence[Any]) -> list[int]:
    """Return the positions of the tensors that want a gradient."""
    if not torch.is_grad_enabled():
        return []
    return [i for i, t in enumerate(tensors) if t is not None and t.requires_grad]


def _dense(x: Tensor) -> Tensor:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
