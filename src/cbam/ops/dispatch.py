"""Which backend computes a call: a fused operator, or plain torch ("eager").

`auto`, the default, takes the operator wherever it can run and plain torch elsewhere; `eager` always takes plain
torch; `cpp` and `triton` take that operator, or raise with the reason why it cannot run. Set by `cbam.set_backend` or
by the environment variable CBAM_BACKEND, which is read when attention is first computed.
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
from cbam.ops.backend import Backend
from cbam.ops.signature import Weights

# The first one for a kind of device computes its maps by default, and is what `torch.ops.cbam` runs there.
OPERATORS: tuple[Backend, ...] = (cpp, triton)
BACKENDS = ("auto", "eager", *(operator.name for operator in OPERATORS))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (Tensor, nn.Parameter)
# A program that is being exported holds its tensors in these.
_EXPORTED = ("FakeTensor", "FunctionalTensor")

_NAMED = {operator.name: operator for operator in OPERATORS}
# (backend in force, kind of device) -> operator
_TABLE = {
    (choice, kind): operator
    for operator in reversed(OPERATORS)
    for choice in ("auto", operator.name)
    for kind in operator.device_types
}
_settings: list[set_backend] = []  # blocks that are open, and statements; the last one is in force
_chosen: str | None = None  # the last one's name; None: the environment decides


class set_backend:  # in lower case, like torch.set_grad_enabled
    """Choose what computes the attention, for the whole process; as a context manager, for a block.

    Blocks of several threads may overlap: the one that began last is in force, and none is when all have ended.

    Args:
        name: "auto" (default): the fused operator where it can run, plain torch elsewhere; "eager": plain torch;
            "cpp": the fused CPU operator, "triton": the fused GPU operator; an error where that cannot run.

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
        reason = _NAMED[name].unavailable_reason() if name in _NAMED else None
        if reason is not None:
            raise CBAMError(f"backend {name!r} cannot run: {reason}.")
        self._name, self._is_block = name, False
        if len(_settings) > 1 and not (_settings[-1]._is_block or _settings[-2]._is_block):
            del _settings[-2]  # a statement that another one has replaced
        _settings.append(self)
        _chosen = name

    def __enter__(self) -> set_backend:
        self._is_block = True
        return self

    def __exit__(self, *_: object) -> None:
        global _chosen
        first = last = _settings.index(self)
        while last + 1 < len(_settings) and not _settings[last + 1]._is_block:
            last += 1  # statements in the block end with it
        del _settings[first : last + 1]
        _chosen = _settings[-1]._name if _settings else None

    def __repr__(self) -> str:
        return f"<backend {backend()!r}>"


def backend() -> str:
    """Return the backend in force: "auto", "eager", or the name of an operator."""
    return _chosen or _from_environment()


@cache
def _read_environment() -> str:
    name = os.environ.get("CBAM_BACKEND") or "auto"
    if name not in BACKENDS:
        raise unknown_name("backend in CBAM_BACKEND", name, BACKENDS)
    return name


def _from_environment() -> str:
    return _read_environment()


# The compiler keeps the answer; it would warn of the cache.
_from_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Return whether torch.export is at work; torch 2.11's compiler takes `torch.compiler.is_exporting()` for true."""
    return torch.compiler.is_exporting()


is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_fuse(x: Tensor, weights: Weights | str) -> bool:
    """Return whether the operator computes this call.

    Args:
        x: the map, (N, C, H, W) or (C, H, W).
        weights: the gates' tensors, or why the operator cannot compute these gates.

    Raises:
        CBAMError: the backend in force is an operator that cannot run; the message holds the reason.
    """
    name = _chosen or _from_environment()
    if name == "eager":
        return False
    if isinstance(weights, str):
        reason: str | None = weights
    elif torch.compiler.is_compiling():
        reason = _unfused_reason_in_compiler(x, weights)
    else:
        reason = unfused_reason(x, weights)
    if reason is None:
        return True
    if name != "auto":
        raise CBAMError(f"backend {name!r} cannot run here: {reason}.")
    return False


def operator_for(x: Tensor) -> Backend:
    """Return the operator that computes maps like x in eager mode, where `can_fuse` said that one does."""
    kind = "cpu" if x.is_cpu else x.device.type  # in this order: the second one takes longer
    return _TABLE[_chosen or _from_environment(), kind]


def operator_at_hand(x: Any) -> Backend | None:
    """Return the operator for a plain map in eager mode, None wherever `can_fuse` has to look closer.

    The caller looks at the type of the map's numbers.
    """
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        return None
    if (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or x.layout is not torch.strided
    ):
        return None
    kind = "cpu" if x.is_cpu else x.device.type
    operator = _TABLE.get((_chosen or _from_environment(), kind))
    if operator is None or operator.unavailable_reason() is not None:
        return None
    return operator if operator.unsupported_reason(x) is None else None


def operator_on(device_type: str) -> Backend | None:
    """Return the operator for a kind of device in the backend in force, None if it has none there."""
    return _TABLE.get((_chosen or _from_environment(), device_type))


def unfused_reason(x: Tensor, weights: Weights) -> str | None:
    """Return why the operator cannot compute with these tensors; None if it can."""
    if type(x) not in _PLAIN:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if x.dtype not in DTYPES or x.layout is not torch.strided:
        return f"a map of {x.dtype} in layout {x.layout}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives work on plain operations"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    device = x.device
    for weight in weights:
        if weight is not None and (
            type(weight) not in _PLAIN or weight.device != device or weight.dtype not in DTYPES
        ):
            return f"a weight is a {type(weight).__name__} of {weight.dtype} on {weight.device}, the map is on {device}"
    if torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights.constants):
        return "a gradient is needed for a gate scale or running statistics"
    name, kind = _chosen or _from_environment(), device.type
    operator = _TABLE.get((name, kind))
    if operator is None:
        return _wrong_device(name, kind, str(device))
    reason = operator.unavailable_reason()
    if reason is None:
        return operator.unsupported_reason(x)
    _warn_once(reason)
    return reason


def _unfused_reason_in_compiler(x: Tensor, weights: Weights) -> str | None:
    """Return the same where a compiler or an exporter evaluates the code."""
    if type(x) not in _PLAIN and type(x).__name__ not in _EXPORTED:
        return f"the map is a {type(x).__name__}, not a plain tensor"
    if x.dtype not in DTYPES:
        return f"a map of {x.dtype}"
    for weight in weights:
        if weight is not None and (weight.device != x.device or weight.dtype not in DTYPES):
            return f"a weight of {weight.dtype} on {weight.device}, the map is on {x.device}"
    return _unregistered_reason(_chosen or _from_environment(), x.device.type, str(x.device))


def _unregistered_reason(name: str, kind: str, device: str) -> str | None:
    """Return why `torch.ops.cbam` does not run the backend in force on a device; None if it does."""
    operator, registered = _TABLE.get((name, kind)), _TABLE.get(("auto", kind))
    if operator is None:
        return _wrong_device(name, kind, device)
    if registered is not None and registered is not operator and registered.unavailable_reason() is None:
        return f"compiled code on {registered.device} runs {registered.title}"
    reason = operator.unavailable_reason()
    if reason is not None:
        _warn_once(reason)
    return reason


# The compiler keeps the answer: it cannot trace the loading of a library.
_unregistered_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _wrong_device(name: str, kind: str, device: str) -> str:
    if name == "auto":
        return f"there is no operator for {kind} devices"
    here = "the CPU" if kind == "cpu" else device
    return f"the map is on {here}; {_NAMED[name].title} runs on {_NAMED[name].device}"


@cache
def _warn_once(reason: str) -> None:
    """Warn, since nobody would see otherwise why CBAM is slow."""
    warnings.warn(f"CBAM runs without its fused operator, several times slower: {reason}.", stacklevel=2)
