"""Checks of torch's tools: export, compiler, `torch.func`, `torch.fx`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from cbam.testing.subject import Subject, expect, same, same_bits


def export(s: Subject) -> None:
    """`torch.export` with a batch and sizes that are free gives a program that computes the same."""
    block, x = s.build(), s.map()
    free = dict.fromkeys((0, *range(2, x.dim())), torch.export.Dim.AUTO)
    with torch.no_grad():
        program = torch.export.export(block, (x,), dynamic_shapes=(free,)).module()
        for shape in (_another_batch(s), _larger(s)):
            other = s.map(shape)
            try:
                expected = block(other)
            except Exception:  # a module of fixed size
                continue
            s.close(program(other), expected, f"the exported program's map for {shape}")


def compiled(s: Subject) -> None:
    """`torch.compile` takes it as one graph, forward and backward, and as one for all sizes of a batch."""
    block = s.build()
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(block, fullgraph=True, backend="aot_eager")
    graphs = []
    try:
        for batch in (2, 3, 5, 4, 7):
            x = s.map((batch, *s.shape[1:]))
            (y, gradient), (expected, expected_gradient) = _with_gradient(run, x), _with_gradient(block, x)
            s.close(y, expected, f"the compiled map of a batch of {batch}")
            s.close(gradient, expected_gradient, f"the gradient from compiled code for a batch of {batch}")
            graphs.append(counters["stats"]["unique_graphs"])
    finally:
        torch._dynamo.reset()
    expect(graphs[-1] <= 2, f"graphs compiled after batches of 2, 3, 5, 4 and 7: {graphs}; two are enough")


def _with_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(leaf)
    (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
    return y.detach(), gradient


def traced(s: Subject) -> None:
    """`torch.fx` traces it, whole or through, and the graph computes the same."""
    block, x = s.build(), s.map()
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(block))
    with torch.no_grad():
        s.close(graph(x), block(x), "the traced module's map")


def functional(s: Subject) -> None:
    """`torch.func` computes with given weights; `torch.vmap` gives the loop's maps and gradients, one per image."""
    block, x = s.build(), s.map()
    weights = {name: p.detach() for name, p in block.named_parameters()}
    moved = {name: w + 0.25 for name, w in weights.items()}
    y = block(x)
    same_bits(torch.func.functional_call(block, weights, (x,)), y, "the map of functional_call")
    if moved:
        other = torch.func.functional_call(block, moved, (x,))
        expect(not torch.equal(other, y), "functional_call with other weights gives the same map")

    def one(image: Tensor) -> Tensor:
        return block(image[None])[0]

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(block, weights, (image[None],)).square().sum()

    s.close(torch.vmap(one)(x), y, "the map of vmap over images")
    if weights:
        each = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        for i, image in enumerate(x):
            block.zero_grad()
            block(image[None]).square().sum().backward()
            alone = {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in block.named_parameters()
            }
            scale = max(grad.abs().amax().item() for grad in alone.values())
            for name, grad in alone.items():
                s.close(each[name][i], grad, f"the gradient of {name} for image {i} from vmap", 1e-3, scale)
    tangent = s.map(seed=3)
    forward_mode = torch.func.jvp(block, (x,), (tangent,))[1]
    with torch.enable_grad():
        (reverse,) = torch.autograd.grad(block(leaf := x.clone().requires_grad_()), leaf, tangent)
    # <J t, t> is <t, J' t>.
    a, b = (forward_mode * tangent).sum(), (tangent * reverse).sum()
    s.close(a, b, "jvp against the gradient", 1e-3)
    same(block.training, False, "training mode afterwards")


def _another_batch(s: Subject) -> tuple[int, ...]:
    return (s.shape[0] + 1, *s.shape[1:])


def _larger(s: Subject) -> tuple[int, ...]:
    return (s.shape[0] + 1, s.channels, *(size + 1 for size in s.shape[2:]))
