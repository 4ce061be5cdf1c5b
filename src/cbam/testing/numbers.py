"""Checks of what a module computes: values, gradients, the identity, modes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cbam.nn.base import AttentionModule
from cbam.ops.dispatch import set_backend
from cbam.testing.subject import Subject, expect, not_applicable, same, same_bits


def forward(s: Subject) -> None:
    """The map has the shape and the dtype that came, is that of float64, and the input stays as it was."""
    block, x = s.build(), s.map()
    before = x.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        y, again = block(x), block(x)
    same_bits(x, before, "the input, which the module must leave alone")
    same((tuple(y.shape), y.dtype, y.device), (tuple(x.shape), x.dtype, x.device), "shape, dtype and device")
    with torch.no_grad(), set_backend("eager"):
        exact = copy.deepcopy(block).double()(x.double().contiguous())
    s.close(y, exact, "the map against float64")
    same_bits(again, y, "the map of a second call in evaluation mode")


def backward(s: Subject) -> None:
    """The gradients of the map and of all parameters are those of float64."""
    block, x = s.build(), s.map()
    grad = s.map(seed=2)
    got = _gradients(block, x, grad)
    with set_backend("eager"):
        wide = x.double().contiguous()
        exact = _gradients(copy.deepcopy(block).double(), wide, grad.double().contiguous())
    for name, expected in exact.items():
        expect(
            (got[name] is None) == (expected is None), f"the gradient of {name} is there in one dtype only"
        )
        if expected is not None and expected.numel():
            found = got[name]
            assert found is not None
            _close_in_norm(s, found, expected, f"the gradient of {name} against float64")


def _gradients(block: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor | None]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    block.zero_grad()
    block(leaf).backward(grad)
    return {"the map": leaf.grad, **{name: p.grad for name, p in block.named_parameters()}}


def _close_in_norm(s: Subject, got: Tensor, expected: Tensor, what: str) -> None:
    # In low precision another of two values that round to the same may be the maximum, and get the gradient.
    expect(bool(got.isfinite().all()), f"{what} is not finite")
    error = (got.double() - expected).norm().item()
    slack = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}[s.dtype]
    allowed = slack * max(expected.norm().item(), 1e-3 if s.dtype.itemsize >= 4 else 0.1)
    expect(error <= allowed, f"{what}: off by {error:.2g} in norm, allowed is {allowed:.2g}")


def differences(s: Subject) -> None:
    """The gradients are those of finite differences, in float64, in training and in evaluation mode."""
    block, x = s.build(), s.map().requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(0)  # a module may draw random numbers in training
        return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x,))

    for training in (False, True):
        block.train(training)
        mode = "training" if training else "evaluation"
        try:
            torch.autograd.gradcheck(call, (x, *block.parameters()), fast_mode=True, atol=1e-5, rtol=1e-3)
        except RuntimeError as error:  # of gradcheck, many lines long
            text = " ".join(str(error).split())[:200]
            raise AssertionError(f"in {mode} mode: {text}") from error


def identity(s: Subject) -> None:
    """With its `set_identity`, the module returns its input bit for bit, in both modes."""
    block, x = s.build(), s.map()
    given = s.kind.identity or getattr(getattr(block, "module", block), "set_identity", None)
    if given is None or getattr(given, "__func__", None) is AttentionModule.set_identity:
        raise not_applicable("no set_identity")
    s.kind.set_identity(block)
    with torch.no_grad():
        for training in (False, True):
            if training and x.numel() <= s.channels:
                continue  # a norm in the gate takes no statistics of one value
            y = block.train(training)(x)
            same_bits(y, x, f"the map after set_identity, {'training' if training else 'evaluation'} mode")


def modes(s: Subject) -> None:
    """In evaluation mode nothing moves and no image depends on the others; in training the map keeps its form.

    A call leaves the modes and hooks of all parts as they are.
    """
    block, x = s.build(), s.map()
    buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
    changed = "modes and hooks of the parts after a call"
    before = _states(block)
    with torch.no_grad():
        y = block(x)
        same(_states(block), before, changed)
        for name, buffer in block.named_buffers():
            same_bits(buffer, buffers[name], f"the buffer {name}, which evaluation must leave alone")
        for i in range(len(x)):
            s.close(block(x[i : i + 1]), y[i : i + 1], f"image {i} by itself")
        before = _states(block.train())
        trained = block(x)
        same(_states(block), before, changed)
    same((trained.shape, trained.dtype), (x.shape, x.dtype), "shape and dtype in training")
    expect(bool(trained.isfinite().all()), "the map in training is not finite")


def _states(block: nn.Module) -> list[tuple[bool, int, int]]:
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in block.modules()]


def autocast(s: Subject) -> None:
    """Under autocast a map in bfloat16 stays one, near that of float32, and the gates learn."""
    block, x = s.build(), s.map()
    exact = block(x)
    with torch.autocast(torch.device(s.device).type, torch.bfloat16):
        low = x.bfloat16()
        y = block(low)
        same(y.dtype, low.dtype, "dtype of the map")
    s.close(y, exact, "the map against that without autocast", 0.1)
    y.float().square().sum().backward()
    for name, parameter in block.named_parameters():
        if parameter.grad is not None:
            expect(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")
