"""The Triton backend: the operator for GPUs; with TRITON_INTERPRET=1 also for the CPU, step by step, for tests.

Triton itself is imported with the first map that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cbam.ops import library
from cbam.ops.form import Form
from cbam.ops.signature import ForwardArguments, NormBefore, OperatorConfig, Weights, flat
from cbam.ops.triton.mode import INTERPRETED

_OLDEST = (3, 6)
_LARGEST = 2**31 - 1

name = "triton"
title = "the Triton operator"
device = "a GPU"
device_types: tuple[str, ...] = ("cuda", "cpu") if INTERPRETED else ("cuda",)


@cache
def unavailable_reason() -> str | None:
    """Return why the kernels cannot run on this machine, found by running one; None if they can.

    >>> unavailable_reason() is None or len(unavailable_reason()) > 20
    True
    """
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use (torch.cuda.is_available() is False)"
    try:
        from triton import __version__ as version  # builds for ROCm come in packages of other names
    except ImportError:
        return "Triton is not installed; PyTorch's builds for GPUs on Linux bring it, elsewhere: pip install triton"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"Triton {version} is too old; type: pip install 'triton>={_OLDEST[0]}.{_OLDEST[1]}'"
    _register()
    if INTERPRETED:
        return None
    try:
        _run_once()
    except Exception as error:  # no C compiler for Triton's launcher, an architecture that it does not know
        return f"Triton {version} does not run here ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return None


def unsupported_reason(x: Tensor) -> str | None:
    """Return why the kernels, which count the elements of one sample in 32 bits, cannot compute a map."""
    if x.shape[-3] * x.shape[-2] * x.shape[-1] > _LARGEST:
        return "one sample has 2^31 elements or more"
    return None


def form(tensors: Sequence[Any], config: OperatorConfig) -> Form:
    """Return the form of a call."""
    from cbam.ops.triton.forms import TritonForm

    return TritonForm(tensors, config)


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `cbam::forward`."""
    from cbam.ops.triton.run_forward import forward as run

    x = arguments[0]
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return run(*arguments)
    return run(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute `cbam::backward`."""
    from cbam.ops.triton.run_backward import backward as run

    grad = arguments[0]
    if grad.is_cuda and grad.device.index != torch.cuda.current_device():
        with torch.cuda.device(grad.device):
            return run(*arguments)
    return run(*arguments)


@cache
def _register() -> torch.library.Library:
    return library.provide(forward, backward, *device_types)


def _run_once() -> None:
    """Compile and run the operator on a map of one element."""
    x, one = torch.ones(1, 1, 1, 1, device="cuda"), torch.ones(1, 1, device="cuda")
    gate = Weights(w0=one, w1=one)
    forward(*flat(ForwardArguments(x, gate, NormBefore(), None, OperatorConfig(pooling=1), keep=False)))
    torch.cuda.synchronize()
