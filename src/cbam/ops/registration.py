"""What torch's compiler, exporter and counters need to know about `cbam::forward` and `cbam::backward`.

The schemas and the CPU kernels come with the C++ library; `register` is called once, when that has been loaded.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._library.utils import get_layout_constraint_tag
from torch.utils.flop_counter import register_flop_formula

from cbam.ops import fused, plain
from cbam.ops.plain import DIFFERENTIABLE, TENSORS
from cbam.ops.reference import accumulation_dtype


def register() -> None:
    """Register shapes, derivative, decomposition and FLOP formulas."""
    forward, backward = torch.ops.cbam.forward, torch.ops.cbam.backward
    torch.library.register_fake("cbam::forward", _fake_forward)
    torch.library.register_fake("cbam::backward", _fake_backward)
    torch.library.register_autograd("cbam::forward", _derivative, setup_context=_keep)
    register_decomposition(forward.default)(decomposed)
    # As a meta function too: fake tensors would otherwise take their shapes from the decomposition.
    register_decomposition(forward.default, type="meta")(_fake_forward)
    register_flop_formula(forward)(_forward_flops)
    register_flop_formula(backward)(_backward_flops)


def saved_numbers(x: Any, w0: Any, kernel: Any, norm_training: bool) -> tuple[Any, Any]:
    """Return how many numbers and how many indices a forward pass keeps, from the shapes of its arguments."""
    n, c, height, width = x
    positions = n * height * width
    numbers = indices = 0
    if w0 is not None:
        numbers, indices = 3 * n * c + 2 * n * w0[0], n * c
    if kernel is not None:
        numbers += 3 * positions + (positions + 2 if norm_training else 0)
        indices += positions
    return numbers, indices


def _keep_whole_in_inductor() -> None:
    """Tell torch's compiler, if it is at work, to call the operator as it is.

    It would do so by itself, but where the variable CI is set it takes an operator with a decomposition for a mistake.
    It is too large to be imported for that, and it asks for shapes before it decides.
    """
    lowering, forward = sys.modules.get("torch._inductor.lowering"), torch.ops.cbam.forward.default
    if lowering is not None and forward not in lowering.lowerings:
        tag = get_layout_constraint_tag(forward, with_default=True)
        lowering.make_fallback(forward, lowering.tag_to_layout_constraint(tag), warn=False)


def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _keep_whole_in_inductor()
    w0, kernel = arguments[0], arguments[5]
    norm_training, _, _, keep = arguments[-4:]
    dtype = accumulation_dtype(x.dtype)
    numbers = indices = 0
    if keep:
        numbers, indices = saved_numbers(x.shape, _shape(w0), _shape(kernel), norm_training)
    saved = x.new_empty(numbers, dtype=dtype)
    where = x.new_empty(indices, dtype=torch.int32)
    return torch.empty_like(x), saved, where, x.new_empty(2 if norm_training else 0, dtype=dtype)


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *weights, out = arguments[: TENSORS - 1]
    tensors = (x, *weights)
    dtype = accumulation_dtype(x.dtype)
    found = [torch.empty_like(x)]
    for i in DIFFERENTIABLE[1:-1]:
        tensor = tensors[i]
        found.append(x.new_empty(0 if tensor is None else tensor.numel(), dtype=dtype))  # flat
    found.append(x.new_empty(0) if out is None else torch.empty_like(x))
    return tuple(found)


def decomposed(x: Tensor, *arguments: Any) -> Any:
    """Return what the operator returns, in plain operations: for exporters that know no others.

    A call that keeps numbers for backward stays as it is, since only the operator itself can read them.
    """
    keep = arguments[-1]
    if keep:
        return NotImplemented
    *gates_and_norm, residual = arguments[: TENSORS - 1]
    weights, before = plain.Weights(*gates_and_norm[:11]), plain.NormBefore(*gates_and_norm[11:])
    settings = plain.Settings(*arguments[TENSORS - 1 : -1])
    y, stats = plain.forward(x, weights, before, settings, residual=residual)
    return y, stats.new_empty(0), stats.new_empty(0, dtype=torch.int32), stats


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, saved, where, stats = output
    ctx.mark_non_differentiable(saved, where, stats)
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.kept = plain.Settings(*inputs[TENSORS:-1]), inputs[-1]
    ctx.save_for_backward(*fused.to_keep(inputs, ctx.settings, y), saved, where)


def _derivative(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    count = TENSORS + len(ctx.settings) + 1
    if grad is None:
        return (None,) * count
    found = fused.gradients(grad, ctx.saved_tensors, ctx.settings, ctx.needs_input_grad, usable=ctx.kept)
    return (*found, *[None] * (count - TENSORS))


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _forward_flops(x: Any, *arguments: Any, **_: Any) -> int:
    return 2 * plain.attention_multiply_adds(x, arguments[0], arguments[5], arguments[TENSORS - 1])


def _backward_flops(grad: Any, x: Any, *arguments: Any, **_: Any) -> int:
    # Each product has two gradients.
    return 4 * plain.attention_multiply_adds(x, arguments[0], arguments[5], arguments[TENSORS + 1])
