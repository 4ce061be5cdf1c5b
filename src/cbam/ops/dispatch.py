"""Which backend computes a call: the fused operator, C++ on the CPU and Triton on a GPU, or plain torch ("eager").

`auto`, the default, takes the operator wherever it can run and plain torch elsewhere; `eager` always takes plain
torch; `cpp` and `triton` take that operator or raise with the reason why it cannot run. Set by `cbam.set_backend` or by
the environment variable CBAM_BACKEND.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cbam.errors import CBAMError, unknown_name
from cbam.ops import cpp, triton
from cbam.ops.plain import Weights

BACKENDS = ("auto", "eager", "cpp", "triton")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (Tensor, nn.Parameter)
# A program that is being exported holds its tensors in these.
_EXPORTED = ("FakeTensor", "FunctionalTensor")

_chosen: str | None = None  # by set_backend; None: the environment decides


class set_backend:  # in lower case, like torch.set_grad_enabled
    """Choose what computes the attention, for the whole process; as a context manager, for a block.

    Args:
        name: "auto" (default): the fused operator where it can run, plain torch elsewhere; "eager": plain torch;
            "cpp": the fused CPU operator, "triton": the fused GPU operator, and an error that tells why where it
            cannot run.

    Raises:
        CBAMError: an unknown name; "cpp" without the compiled library; "triton" without Triton or without a GPU.

    >>> with set_backend("eager"):
    ...     backend()
    'eager'
    """

    def __init__(self, name: str):
        global _chosen
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        why = (
            cpp.unavailable_reason()
            if name == "cpp"
            else triton.unavailable_reason()
            if name == "triton"
            else None
        )
        if why is not None:
            raise CBAMError(f"backend {name!r} cannot run: {why}.")
        self._before = _chosen
        _chosen = name

    def __enter__(self) -> set_backend:
        return self

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before

    def __repr__(self) -> str:
        return f"<backend {backend()!r}>"


def backend() -> str:
    """Return the backend in force: "auto", "eager", "cpp" or "triton"."""
    return _chosen or _from_environment()


def _from_environment() -> str:
    name = os.environ.get("CBAM_BACKEND") or "auto"
    if name not in BACKENDS:
        raise unknown_name("backend in CBAM_BACKEND", name, BACKENDS)
    return name


# The compiler keeps the answer instead of watching the environment.
_from_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_fuse(x: Tensor, weights: Weights | str) -> bool:
    """Return whether the operator computes this call.

    Args:
        x: the map, (N, C, H, W) or (C, H, W).
        weights: the gates' tensors, or why they cannot be given to the operator.

    Raises:
        CBAMError: the backend is "cpp" or "triton" and the operator cannot run; the message holds the reason.
    """
    name = _chosen or _from_environment()
    if name == "eager":
        return False
    if torch.compiler.is_compiling():
        why = weights if isinstance(weights, str) else _compiled_obstacle(x, weights)
    else:
        why = weights if isinstance(weights, str) else unavailable_reason(x, weights)
    if why is None:
        return True
    if name != "auto":
        raise CBAMError(f"backend {name!r} cannot run here: {why}.")
    return False


def operator_for(x: Tensor) -> Any:
    """Return the module, `cpp` or `triton`, whose `forward` and `backward` compute maps like x in eager mode."""
    return triton if not x.is_cpu or (_chosen or _from_environment()) == "triton" else cpp


def unavailable_reason(x: Tensor, weights: Weights) -> str | None:
    """Return why the operator cannot compute with these tensors; None if it can."""
    if type(x) not in _PLAIN:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if x.dtype not in _DTYPES or x.layout is not torch.strided:
        return f"a map of {x.dtype} in layout {x.layout}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives work on plain operations"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    device = x.device
    for weight in weights:
        if weight is not None and (
            type(weight) not in _PLAIN or weight.device != device or weight.dtype not in _DTYPES
        ):
            return f"a weight is a {type(weight).__name__} of {weight.dtype} on {weight.device}, the map is on {device}"
    if torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights.constants):
        return "a gradient is asked for a gate scale or running statistics"
    return _without_operator(device) or (None if x.is_cpu else triton.too_large(x))


def _compiled_obstacle(x: Tensor, weights: Weights) -> str | None:
    """Return the same where a compiler or an exporter looks at the code: only what it can evaluate."""
    if type(x) not in _PLAIN and type(x).__name__ not in _EXPORTED:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if x.dtype not in _DTYPES:
        return f"a map of {x.dtype}"
    for weight in weights:
        if weight is not None and (weight.device != x.device or weight.dtype not in _DTYPES):
            return f"a weight of {weight.dtype} on {weight.device}, the map is on {x.device}"
    if x.device.type == "cpu" and (_chosen or _from_environment()) == "triton" and cpp.available():
        return "compiled code on the CPU runs the C++ operator"
    return _without_operator(x.device)


def _without_operator(device: torch.device) -> str | None:
    """Return why no operator runs on the device in the present backend, None if one does."""
    name = _chosen or _from_environment()
    if name == "triton" and device.type == "cpu" and not triton.INTERPRETED:
        return "the map is on the CPU; the Triton operator runs on a GPU"
    if name == "cpp" and device.type != "cpu":
        return f"the map is on {device}; the C++ operator runs on the CPU"
    return _missing(device.type, name == "triton")


def _missing(device: str, interpreted: bool) -> str | None:
    """Return why the operator for a kind of device is not there; None if it is."""
    if device == "cuda" or interpreted:
        why = triton.unavailable_reason()
    elif device == "cpu":
        why = cpp.unavailable_reason()
    else:
        return f"there is no operator for {device} devices"
    if why is not None:
        _say_once(why)
    return why


# The compiler keeps the answer: it cannot trace the loading of a library.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _say_once(why: str) -> None:
    """Warn, or nobody would find out why CBAM is slow."""
    warnings.warn(f"CBAM runs without its fused operator, several times slower: {why}.", stacklevel=2)
