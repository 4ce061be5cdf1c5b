"""Call the operator: the dtypes and memory formats that it takes, and its autograd function.

In eager mode the kernels are called below autograd, which is faster than a derivative registered with torch.library; a
compiler or an exporter gets the registered operator, one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cbam.ops import dispatch, gates
from cbam.ops.backend import Backend
from cbam.ops.form import Form
from cbam.ops.gradients import memory_format, through_plain_operations
from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import RESIDUAL, TENSORS, NormBefore, OperatorConfig, Weights

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
    return run(dispatch.operator_for(x), [x, *tensors, added], config, listeners)


def run(
    operator: Backend,
    tensors: Sequence[Any],
    config: OperatorConfig,
    listeners: tuple[gates.Listener, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Call a backend in eager mode, below autograd or through it; return the map and the batch statistics.

    Args:
        operator: the backend.
        tensors: the map, then all others in the operator's order, as it takes them.
        config: the numbers.
        listeners: get the gates.
    """
    return _call(operator, tensors, config).run(listeners)


class Call:
    """A call on its way through autograd, which gets what may want a gradient and nothing else.

    Args:
        form: of the call.
        addresses: of the map and the weights, as the form found them.
        x, weights, residual: the tensors; of the weights those that there are.
        statistics: returns those of a batch norm in front for x, where they shall be counted in this call; `weights`
            and `addresses` then end before them.
    """

    __slots__ = ("addresses", "form", "keeps", "kept", "residual", "statistics", "stats", "weights", "x")

    def __init__(
        self,
        form: Form,
        addresses: list[int] | None,
        x: Tensor,
        weights: list[Any],
        residual: Tensor | None,
        statistics: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ):
        self.form, self.addresses, self.x, self.weights, self.residual = form, addresses, x, weights, residual
        self.statistics, self.keeps = statistics, False
        self.kept: tuple[Tensor, ...] = ()

    def run(self, listeners: tuple[gates.Listener, ...] = ()) -> tuple[Tensor, Tensor]:
        """Return the map and the batch statistics; hand the gates on, which are among what backward needs."""
        if listeners:
            self.keeps = True
        if torch.is_grad_enabled():
            weights = self.weights
            learned = [weights[j] for j in self.form.learned]
            if self.residual is None:
                y = _apply(self, self.x, *learned)
            else:
                y = _apply(self, self.x, *learned, self.residual)
        else:
            y = self.compute(self.keeps)
        if listeners:
            form = self.form
            found = gates.gates_in(self.kept[0], form.shape, form.hidden, form.has_kernel)
            gates.hand_on(listeners, self.x, *found)
        return y, self.stats

    def compute(self, keep: bool) -> Tensor:
        """Call the backend."""
        if self.statistics is not None:
            mean, var = self.statistics(self.x)
            self.weights += mean, var
            assert self.addresses is not None
            self.addresses += mean.data_ptr(), var.data_ptr()
        y, self.kept, self.stats = self.form.forward(
            self.addresses, self.x, self.weights, self.residual, keep
        )
        return y


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *_: Tensor) -> Tensor:
        keep = True in ctx.needs_input_grad
        y = call.compute(keep or call.keeps)
        if keep:
            form = ctx.form = call.form
            out = (y,) if form.config.relu else ()
            ctx.save_for_backward(call.x, *call.weights, *out, *call.kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        form = ctx.form
        x, *kept = ctx.saved_tensors
        count, relu = len(form.places), form.config.relu
        weights, out = kept[:count], kept[count] if relu else None
        if torch.is_grad_enabled():  # for a second derivative
            return (None, *_differentiable(form, grad, form.flat(x, weights, out), ctx.needs_input_grad))
        like_x = grad
        if (
            not form.is_of_the_map(grad) or x.stride() != form.strides
        ):  # hooks may have kept x in another layout
            layout = memory_format(x)
            like_x = grad.to(form.dtype).resolve_neg().contiguous(memory_format=layout)
            out = out if out is None else out.contiguous(memory_format=layout)
        found = form.backward(like_x, x, weights, out, kept[count + relu :])
        if form.has_residual and not relu:
            return (None, *found, grad)
        return (None, *found)


# As `_Attend.apply`, without its look for torch.func transforms, where there is no operator.
_apply = super(torch.autograd.Function, _Attend).apply


def _differentiable(
    form: Form, grad: Tensor, kept: Sequence[Any], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of what autograd got, which can be differentiated again."""
    places = [0, *[form.places[j] for j in form.learned], *([RESIDUAL] if form.has_residual else [])]
    needed = [False] * TENSORS
    for i, need in zip(places, needs[1:], strict=True):
        needed[i] = need
    found = through_plain_operations(grad, kept, form.config, needed)
    return [found[i] for i in places]


def _call(operator: Backend, tensors: Sequence[Any], config: OperatorConfig) -> Call:
    form = operator.form(tensors, config)
    x, weights = tensors[0], [tensors[i] for i in form.places]
    residual = tensors[RESIDUAL]
    fits = residual is None or form.is_of_the_map(residual)
    return Call(form, form.addresses(x, weights) if fits else None, x, weights, residual)


def _as_one_node(tensors: Sequence[Any], config: OperatorConfig) -> tuple[Tensor, Tensor]:
    """Call the registered operator, whose derivative torch knows."""
    # An exported program keeps nothing: exporters that do not know the operator can then decompose it.
    keep = not dispatch.is_exporting() and _wants_gradient(tensors)
    y, _, _, stats = torch.ops.cbam.forward.default(*tensors, *config, keep)
    return y, stats


def _wants_gradient(tensors: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_dense(x: Tensor) -> bool:
    """Return whether a map (N, C, H, W) is contiguous or in channels_last."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor) -> Tensor:
    if is_dense(x):
        return x
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
