"""What torch's compiler, exporter and counters need to know about `cbam::forward` and `cbam::backward`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.utils.flop_counter import register_flop_formula

from cbam.ops import batching, plain, registered
from cbam.ops.gradients import gradients, to_keep
from cbam.ops.reference import accumulation_dtype
from cbam.ops.signature import DIFFERENTIABLE, FORWARD, TENSORS, BackwardArguments, ForwardArguments

_MAPS = ("x", "residual", "grad", "out")


def register() -> None:
    """Register shapes, derivative, batch rule, decomposition and FLOP formulas; once, when the operator is defined."""
    forward, backward = torch.ops.cbam.forward, torch.ops.cbam.backward
    torch.library.register_fake("cbam::forward", _fake_forward)
    torch.library.register_fake("cbam::backward", _fake_backward)
    torch.library.register_autograd("cbam::forward", _derivative, setup_context=_keep)
    torch.library.register_vmap("cbam::forward", batching.forward)
    torch.library.register_vmap("cbam::backward", batching.backward)
    register_decomposition(forward.default)(decomposed)
    # As a meta function too: otherwise fake tensors would take their shapes from the decomposition.
    register_decomposition(forward.default, type="meta")(_fake_forward)
    register_flop_formula(forward)(_forward_flops)
    register_flop_formula(backward)(_backward_flops)


def saved_sizes(call: ForwardArguments) -> tuple[int, int]:
    """Return how many numbers and how many argmax indices a forward call keeps for backward."""
    n, c, height, width = call.x.shape
    w0, positions = call.weights.w0, n * height * width
    numbers = indices = 0
    if w0 is not None:
        numbers, indices = 3 * n * c + 2 * n * w0.shape[0], n * c
    if call.weights.kernel is not None:
        numbers += 3 * positions + (positions + 2 if call.config.norm_training else 0)
        indices += positions
    return numbers, indices


def _tell_inductor() -> None:
    """Have torch's compiler, if it is at work, call the operator as it is, and with maps as they come.

    It would not decompose the operator anyway, but where the variable CI is set it takes one with a decomposition for a
    mistake. Inductor is too large to be imported for this; it asks for shapes, and so comes here, before it decides.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is None:
        return
    for operator in (torch.ops.cbam.forward.default, torch.ops.cbam.backward.default):
        if operator not in lowering.lowerings:
            lowering.make_fallback(operator, _in_one_format, warn=False)


def _in_one_format(node: Any, *arguments: Any, **keywords: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments for Inductor, with all maps in the memory format that it gave x.

    That may differ from what x had when the graph was recorded: on CPUs Inductor's convolutions return channels_last.
    To insist on the recorded format would copy a map in front of each call.
    """
    from torch._inductor.ir import NHWC_STRIDE_ORDER, ExternKernel, FlexibleLayout

    call = {
        argument.name: value for argument, value in zip(node.target._schema.arguments, arguments, strict=True)
    }
    call["x"] = ExternKernel.realize_input(call["x"])
    size = call["x"].get_size()
    strides = FlexibleLayout.stride_ordered(size, NHWC_STRIDE_ORDER)
    if list(call["x"].get_stride()) != list(strides):
        strides = FlexibleLayout.contiguous_strides(size)
    for name, value in call.items():
        if name in _MAPS and value is not None:
            call[name] = ExternKernel.require_exact_strides(value, strides)
        elif name not in _MAPS and hasattr(value, "get_size"):
            call[name] = ExternKernel.require_contiguous(value)
    return tuple(call.values()), keywords


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _tell_inductor()
    call = ForwardArguments.parse(arguments)
    x, dtype = call.x, accumulation_dtype(call.x.dtype)
    numbers, indices = saved_sizes(call) if call.keep else (0, 0)
    saved = x.new_empty(numbers, dtype=dtype)
    argmax = x.new_empty(indices, dtype=torch.int32)
    return torch.empty_like(x), saved, argmax, x.new_empty(2 if call.config.norm_training else 0, dtype=dtype)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    _tell_inductor()
    call = BackwardArguments.parse(arguments)
    x, dtype = call.x, accumulation_dtype(call.x.dtype)
    tensors = (x, *call.weights, *call.before)
    found = [torch.empty_like(x)]
    for i in DIFFERENTIABLE[1:-1]:
        tensor = tensors[i]
        found.append(x.new_empty(0 if tensor is None else tensor.numel(), dtype=dtype))  # flat
    found.append(x.new_empty(0) if call.out is None else torch.empty_like(x))
    return tuple(found)


def decomposed(*arguments: Any) -> Any:
    """Return what the operator returns, in plain operations: for exporters that know no others.

    A call that keeps numbers for backward is not decomposed, since only the operator itself can read them.
    """
    call = ForwardArguments.parse(arguments)
    if call.keep:
        return NotImplemented
    y, stats = plain.forward(call.x, call.weights, call.before, call.config, residual=call.residual)
    return y, stats.new_empty(0), stats.new_empty(0, dtype=torch.int32), stats


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, saved, argmax, stats = output
    ctx.mark_non_differentiable(saved, argmax, stats)
    ctx.set_materialize_grads(False)
    call = ForwardArguments.parse(inputs)
    ctx.config, ctx.kept = call.config, call.keep
    ctx.save_for_backward(*to_keep(inputs[:TENSORS], ctx.config, y), saved, argmax)


def _derivative(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(FORWARD)
    found = gradients(
        registered.backward, grad, ctx.saved_tensors, ctx.config, ctx.needs_input_grad, usable=ctx.kept
    )
    return (*found, *[None] * (len(FORWARD) - TENSORS))


def _forward_flops(*shapes: Any, **_: Any) -> int:
    call = ForwardArguments.parse(shapes)  # shapes in the tensors' place
    return 2 * plain.attention_multiply_adds(
        call.x, call.weights.w0, call.weights.kernel, call.config.pooling
    )


def _backward_flops(*shapes: Any, **_: Any) -> int:
    call = BackwardArguments.parse(shapes)
    # Each product has two gradients.
    return 4 * plain.attention_multiply_adds(
        call.x, call.weights.w0, call.weights.kernel, call.config.pooling
    )
