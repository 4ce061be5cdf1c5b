"""The end of a residual block in one call of the operator, for the tests of it."""

import pytest
import torch

from tests.ops import cases
from tests.ops.cases import WithResidual

with_and_without_relu = pytest.mark.parametrize("relu", [True, False], ids=["relu", "sum"])
PLAIN = (torch.float32, torch.contiguous_format)


def block_of(name, shape, dtype=torch.float32, training=False, relu=True, front=None):
    norm = None if front is None else cases.norm_of(shape[1], dtype, front)
    residual = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return WithResidual(cases.block_of(name, shape[1], dtype, training), residual, relu, norm)


def gradients(run, block, x, grad):
    """The output, and the gradients of the map and of every parameter."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = run(leaf)
    found = torch.autograd.grad(y, [leaf, *block.parameters()], grad)
    return {
        "y": y.detach(),
        "x": found[0],
        **dict(zip(dict(block.named_parameters()), found[1:], strict=True)),
    }
