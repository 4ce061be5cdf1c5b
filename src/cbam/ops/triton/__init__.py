"""The fused operator in Triton, for GPUs; with TRITON_INTERPRET=1 also on the CPU, step by step, for tests.

Nothing here imports Triton before the first map that needs it.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Triton decides when it is imported whether kernels are compiled or interpreted.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_OLDEST = (3, 6)
_LARGEST = 2**31 - 1


@cache
def unavailable_reason() -> str | None:
    """Return why the kernels cannot run on this machine, found by trying one; None if they can.

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
    from cbam.ops import schema

    schema.define()
    if INTERPRETED:
        return None
    try:
        _try()
    except Exception as error:  # no C compiler for Triton's launcher, an architecture that it does not know
        return f"Triton {version} does not run here ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return None


def too_large(x: Tensor) -> str | None:
    """Return why the kernels, which count the elements of one sample in 32 bits, cannot take a map."""
    if x.shape[-3] * x.shape[-2] * x.shape[-1] > _LARGEST:
        return "one sample has 2^31 elements or more"
    return None


def forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what `torch.ops.cbam.forward` computes; its arguments in its order."""
    from cbam.ops.triton.forward_pass import forward as run

    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return run(x, *arguments)
    return run(x, *arguments)


def backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Compute what `torch.ops.cbam.backward` computes; its arguments in its order."""
    from cbam.ops.triton.backward_pass import backward as run

    if grad.is_cuda and grad.device.index != torch.cuda.current_device():
        with torch.cuda.device(grad.device):
            return run(grad, *arguments)
    return run(grad, *arguments)


def _try() -> None:
    """Compile and run the operator once, on a map of one element."""
    x, one = torch.ones(1, 1, 1, 1, device="cuda"), torch.ones(1, 1, device="cuda")
    forward(x, one, None, one, *(None,) * 13, 1, 0, 0, False, 1e-5, False, False)
    torch.cuda.synchronize()
