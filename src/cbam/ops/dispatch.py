"""Which backend computes a call: the fused C++ operator, or plain torch ("eager").

`auto`, the default, takes the operator wherever it can run and plain torch elsewhere; `eager` always takes plain
torch; `cpp` takes the operator or raises with the reason why it cannot. Set by `cbam.set_backend` or by the
environment variable CBAM_BACKEND.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cbam.errors import CBAMError, unknown_name
from cbam.ops import cpp
from cbam.ops.plain import Weights

BACKENDS = ("auto", "eager", "cpp")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (Tensor, nn.Parameter)
# A program that is being exported holds its tensors in these.
_EXPORTED = ("FakeTensor", "FunctionalTensor")

_chosen: str | None = None  # by set_backend; None: the environment decides
_noticed = False


class set_backend:  # in lower case, like torch.set_grad_enabled
    """Choose what computes the attention, for the whole process; as a context manager, for a block.

    Args:
        name: "auto" (default): the fused operator where it can run, plain torch elsewhere; "eager": plain torch;
            "cpp": the fused CPU operator, and an error that tells why where it cannot run.

    Raises:
        CBAMError: an unknown name; "cpp" without the compiled library.

    >>> with set_backend("eager"):
    ...     backend()
    'eager'
    """

    def __init__(self, name: str):
        global _chosen
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        if name == "cpp" and (why := cpp.obstacle()) is not None:
            raise CBAMError(f"backend 'cpp' cannot run: {why}.")
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
    """Return the backend in force: "auto", "eager" or "cpp"."""
    return _chosen or _from_environment()


def _from_environment() -> str:
    name = os.environ.get("CBAM_BACKEND") or "auto"
    if name not in BACKENDS:
        raise unknown_name("backend in CBAM_BACKEND", name, BACKENDS)
    return name


# The compiler keeps the answer instead of watching the environment.
_from_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]


def takes(x: Tensor, weights: Weights | str) -> bool:
    """Return whether the operator computes this call.

    Args:
        x: the map, (N, C, H, W) or (C, H, W).
        weights: the gates' tensors, or why they cannot be given to the operator.

    Raises:
        CBAMError: the backend is "cpp" and the operator cannot run; the message holds the reason.
    """
    name = _chosen or _from_environment()
    if name == "eager":
        return False
    if torch.compiler.is_compiling():
        why = weights if isinstance(weights, str) else _compiled_obstacle(x, weights)
    else:
        why = weights if isinstance(weights, str) else obstacle(x, weights)
    if why is None:
        return True
    if name == "cpp":
        raise CBAMError(f"backend 'cpp' cannot run here: {why}.")
    return False


def obstacle(x: Tensor, weights: Weights) -> str | None:
    """Return why the operator cannot compute with these tensors; None if it can."""
    if type(x) not in _PLAIN:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if not x.is_cpu:
        return f"the map is on {x.device}; the C++ operator runs on the CPU"
    if x.dtype not in _DTYPES or x.layout is not torch.strided:
        return f"a map of {x.dtype} in layout {x.layout}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives work on plain operations"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    for weight in weights:
        if weight is not None and (
            type(weight) not in _PLAIN or not weight.is_cpu or weight.dtype not in _DTYPES
        ):
            return f"a weight is a {type(weight).__name__} of {weight.dtype} on {weight.device}"
    if torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights.constants):
        return "a gradient is asked for a gate scale or running statistics"
    return None if _has_library() else cpp.obstacle()


def _compiled_obstacle(x: Tensor, weights: Weights) -> str | None:
    """Return the same where a compiler or an exporter looks at the code: only what it can evaluate."""
    if type(x) not in _PLAIN and type(x).__name__ not in _EXPORTED:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if x.device.type != "cpu":
        return f"the map is on {x.device}; the C++ operator runs on the CPU"
    if x.dtype not in _DTYPES:
        return f"a map of {x.dtype}"
    for weight in weights:
        if weight is not None and (weight.device.type != "cpu" or weight.dtype not in _DTYPES):
            return f"a weight of {weight.dtype} on {weight.device}"
    return None if _has_library() else "the C++ operator is not there; `cbam doctor` tells why"


def _has_library() -> bool:
    """Return whether the operator is there; say once if not, or nobody would find out why CBAM is slow."""
    global _noticed
    if cpp.available():
        return True
    if not _noticed:
        _noticed = True
        warnings.warn(
            f"CBAM runs without its fused operator, several times slower: {cpp.obstacle()}.", stacklevel=2
        )
    return False


_has_library._dynamo_marked_constant = True  # type: ignore[attr-defined]
