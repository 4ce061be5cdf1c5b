"""Memory: the bytes that autograd keeps for backward, and the peak of a step; both exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], owned: Iterable[Tensor]) -> int:
    """Count the bytes that one forward pass keeps for backward, by saved-tensor hooks.

    Args:
        forward: The pass; what it returns is dropped.
        owned: Parameters and buffers, which live anyway and do not count.

    Returns:
        Bytes of all storages that were saved, each once, the input among them if it is kept.

    >>> x, w = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    >>> saved_bytes(lambda: (x * w).exp(), [w])       # x, and the result of exp
    128
    """
    known = {tensor.untyped_storage()._cdata for tensor in owned}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice while we count

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage

    def unpack(_: None) -> Tensor:
        raise AssertionError("saved_bytes() runs no backward pass")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Return by how much PyTorch's memory grows at most during one `step`, from the record of its allocator.

    For a training step of ResNet-50 on a CPU this agrees within 0.1 % with the kernel's high-water mark of a process
    that returns freed memory at once, which takes twenty times as long to measure. Scratch memory that a library
    allocates outside PyTorch (oneDNN does for some convolutions) is not in it.

    Args:
        step: What to run; run it once before, so that what is made once and kept does not count.
        device: Whose memory: "cpu" or "cuda".

    >>> def step():
    ...     first = torch.ones(1000)
    ...     del first
    ...     return torch.ones(500) + torch.ones(500)
    >>> peak_bytes(step)      # two of 500 and their sum
    6000
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler from printing when it starts and stops."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
