"""Measure what a call costs the host, without a GPU: everything is real but the start of a compiled kernel.

Usage: python -m tests.ops.triton.host_time [--json] [--quick]

The maps are in the CPU's memory and the kernels are compiled for sm_90, by Triton's own path with the stand-in driver,
whose launcher does nothing. Times are in calls of `torch.relu` on a map of one element, of its backward for backward,
in the same process; each is the fastest of many rounds, in which all cases take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cbam import CBAM, set_backend
from cbam.nn import after_norm
from cbam.ops import dispatch, triton
from cbam.ops.triton.forms import TritonForm
from tests.ops.triton.stand_in import Driver

SHAPE = (1, 64, 4, 4)


@contextmanager
def stub_launcher() -> Iterator[None]:
    """Send maps in the CPU's memory down the GPU's path inside the block; nothing is started, so no number is right."""
    from triton.runtime import driver

    driver.set_active(Driver("cuda", "90"))
    table, reason, exact = dict(dispatch._TABLE), triton.unavailable_reason, after_norm.exact
    dispatch._TABLE["triton", "cpu"] = triton
    triton.unavailable_reason = lambda: None  # type: ignore[assignment]
    after_norm.exact = lambda *arguments: True  # type: ignore[assignment]
    try:
        with set_backend("triton"):
            yield
    finally:
        dispatch._TABLE.clear()
        dispatch._TABLE.update(table)
        triton.unavailable_reason, after_norm.exact = reason, exact


def cases(dtype: torch.dtype, shape: Sequence[int] = SHAPE) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return what is timed, each with the name of its unit."""
    torch.manual_seed(0)
    x = torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
    residual, grad = torch.zeros_like(x), torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    module, norm = CBAM(shape[1]), nn.BatchNorm2d(shape[1])
    small = torch.ones(1)
    small_leaf = torch.ones(1, requires_grad=True)

    def block(u: torch.Tensor) -> torch.Tensor:
        y = after_norm.attend(norm, module, u, residual, True)
        assert y is not None
        return y

    def without_gradients(call: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                call(x)

        return run

    def backward(y: torch.Tensor, inputs: Sequence[torch.Tensor], grad: torch.Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)

    own = list(module.parameters())
    norm.eval()

    def operator(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return the backend's part of a call of a module."""
        seen: list[Any] = []
        run = getattr(TritonForm, name)

        def record(form: TritonForm, *arguments: Any) -> Any:
            seen[:] = form, [list(a) if isinstance(a, list) else a for a in arguments]
            return run(form, *arguments)

        setattr(TritonForm, name, record)
        call()
        setattr(TritonForm, name, run)
        form, arguments = seen
        return lambda: run(form, *[list(a) if isinstance(a, list) else a for a in arguments])

    return {
        "relu": ("relu", lambda: torch.relu(small)),
        "relu backward": ("relu backward", backward(torch.relu(small_leaf), [small_leaf], small)),
        "operator, inference": ("relu", operator("forward", without_gradients(module))),
        "operator, forward": ("relu", operator("forward", lambda: module(leaf))),
        "operator, backward": ("relu backward", operator("backward", lambda: module(leaf).backward(grad))),
        "module, inference": ("relu", without_gradients(module)),
        "module, forward": ("relu", lambda: module(leaf)),
        "module, backward": ("relu backward", backward(module(leaf), [leaf, *own], grad)),
        "block, inference": ("relu", without_gradients(_in_mode(norm, False, block))),
        "block, forward": ("relu", lambda: _in_mode(norm, True, block)(leaf)),
        "block, backward": (
            "relu backward",
            backward(_in_mode(norm, True, block)(leaf), [leaf, *own, *norm.parameters()], grad),
        ),
    }


def _in_mode(
    norm: nn.Module, training: bool, call: Callable[[torch.Tensor], Any]
) -> Callable[[torch.Tensor], Any]:
    def run(x: torch.Tensor) -> Any:
        norm.training = training
        return call(x)

    return run


def measure(dtype: torch.dtype = torch.bfloat16, rounds: int = 300, calls: int = 10) -> dict[str, float]:
    """Return the time of each case in calls of relu; of relu itself in microseconds.

    Args:
        dtype: of the map; the weights are float32.
        rounds: how often all cases take turns; the fastest counts.
        calls: of a case in a round.
    """
    with stub_launcher():
        timed = cases(dtype)
        best = dict.fromkeys(timed, float("inf"))
        for _, run in timed.values():
            for _ in range(3):
                run()
        gc.collect()
        gc.disable()
        try:
            for _ in range(rounds):
                for name, (_, run) in timed.items():
                    run()  # so that the code is in the cache
                    start = time.perf_counter()
                    for _ in range(calls):
                        run()
                    best[name] = min(best[name], (time.perf_counter() - start) / calls)
        finally:
            gc.enable()
    units = ("relu", "relu backward")
    return {
        name: best[name] * 1e6 if name in units else best[name] / best[unit]
        for name, (unit, _) in timed.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="only bfloat16")
    options = parser.parse_args(arguments)
    dtypes = (torch.bfloat16,) if options.quick else (torch.bfloat16, torch.float32)
    found = {str(dtype).removeprefix("torch."): measure(dtype) for dtype in dtypes}
    if options.json:
        json.dump(found, sys.stdout)
        return
    for dtype, times in found.items():
        for name, value in times.items():
            unit = "us" if name in ("relu", "relu backward") else "x"
            sys.stdout.write(f"{dtype:10} {name:20} {value:8.2f} {unit}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
