"""Run a model for a look at it and leave no trace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode for the block, then restore training flags, buffers and the RNG state.

    Restores after an exception too. Gradients are left alone as long as the block calls no `backward`.

    >>> net = nn.BatchNorm2d(3)
    >>> with preserve_state(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    flags = [(module, module.training) for module in model.modules()]
    tensors = itertools.chain(model.parameters(), model.buffers())
    with (
        torch.random.fork_rng(devices=list({tensor.device for tensor in tensors if tensor.is_cuda})),
        preserve_buffers(model),
    ):
        try:
            # Not model.eval(): that calls user-overridden train() methods, which may do more than set flags.
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, flag in flags:
                module.training = flag


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers after the block, after an exception too; the model stays in its mode.

    >>> net = nn.BatchNorm2d(3)
    >>> with preserve_buffers(net):
    ...     _ = net(torch.ones(2, 3, 4, 4))
    >>> int(net.num_batches_tracked)
    0
    """
    buffers = [
        (module, name, buffer, None if buffer is None or buffer.is_meta else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if buffer is not None and before is not None:
                _put_back(buffer, before)


def _put_back(buffer: Tensor, before: Tensor) -> None:
    # Writing only what changed keeps version counters, and so graphs that saved the buffer, valid.
    with torch.no_grad():
        if not torch.equal(buffer, before):
            buffer.copy_(before)


def probe_input(model: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return zeros of `size` in the dtype and on the device of the first floating-point parameter.

    >>> probe_input(nn.Conv2d(3, 8, 1).double(), (1, 3, 8, 8)).dtype
    torch.float64
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return torch.zeros(size)
    return torch.zeros(size, dtype=first.dtype, device=first.device)
