"""Call the compiled operator without torch's dispatcher: `csrc/direct.cpp` takes numbers and addresses.

On a small map the dispatcher takes longer than the arithmetic. Whoever watches calls in there (a profiler, the counter
of FLOPs, a mode that replaces tensors) sees the registered operator; it also gets what is not as it should be.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from cbam.ops import library, registered
from cbam.ops.signature import DIFFERENTIABLE, RESIDUAL, TENSORS, OperatorConfig, Weights

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NUMBERS = Struct("=12q d q d q")
_FORWARD = Struct(f"={TENSORS + 4}Q")
_BACKWARD = Struct(f"={TENSORS + 3 + len(DIFFERENTIABLE)}Q")
# Positions among the arguments of a forward call.
_W0, _KERNEL = (1 + Weights._fields.index(name) for name in ("w0", "kernel"))
_NOTHING = torch.empty(0)


class _Form:
    """What calls have in common that differ in their tensors only."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, contiguous: bool, hidden: int, k: int, numbers: Any
    ):
        config = OperatorConfig(*numbers)
        n, c, height, width = shape
        positions, planes = n * height * width, 2 if config.descriptor > 2 else 1
        self.dtype = torch.float64 if dtype is torch.float64 else torch.float32
        # A map of one position is a row of channels either way.
        last = not contiguous or height * width == 1
        self.numbers = _NUMBERS.pack(_TYPES[dtype], *shape, last, hidden, k, *numbers)
        self.size = c * positions
        gates = Weights(hidden * c, hidden, hidden * c, c, 1, planes * k * k, 1, 1, 1, 1, 1)  # type: ignore[arg-type]
        self.counts = (*gates, c, c, c, c)
        training = config.norm_training and k > 0
        self.saved = (3 * n * c + 2 * n * hidden if hidden else 0) + (
            (3 + training) * positions + 2 * training if k else 0
        )
        self.argmax = (n * c if hidden else 0) + (positions if k else 0)
        self.stats = 2 if training else 0


_forms: dict[Any, _Form] = {}
_MOST = 4096  # detectors see maps of many sizes


def _form(x: Tensor, w0: Tensor | None, kernel: Tensor | None, numbers: tuple[Any, ...]) -> _Form:
    shape = x.shape
    hidden = 0 if w0 is None else w0.shape[0]
    key = shape, x.dtype, x.is_contiguous(), hidden, 0 if kernel is None else kernel.shape[-1], numbers
    found = _forms.get(key)
    if found is None:
        if len(_forms) >= _MOST:
            _forms.clear()
        found = _forms[key] = _Form(*key)
    return found


def _addresses(x: Tensor, weights: Iterable[Any], other: Tensor | None, form: _Form) -> list[int] | None:
    """Return where the map, the weights and a second map are, 0 if not there; None if one is not as it should be.

    What has no memory of its own, such as the wrapper in which torch makes operations functional, is not.
    """
    if not form.size or x.is_neg() or not (other is None or _alike(other, x)):
        return None
    found, dtype = [x.data_ptr()], form.dtype
    for tensor, count in zip(weights, form.counts, strict=True):
        if tensor is None:
            found.append(0)
        elif (
            tensor.numel() == count
            and tensor.dtype is dtype
            and tensor.is_contiguous()
            and tensor.is_cpu
            and not tensor.is_neg()
            and (address := tensor.data_ptr())
        ):
            found.append(address)
        else:
            return None
    found.append(0 if other is None else other.data_ptr())
    return found if found[0] and (other is None or found[-1]) else None


@cache
def _functions() -> tuple[Any, Any]:
    compiled = ctypes.CDLL(str(library.library_file()))
    for function in (compiled.cbam_forward, compiled.cbam_backward):
        function.argtypes, function.restype = (ctypes.c_char_p, ctypes.c_char_p), ctypes.c_int32
    return compiled.cbam_forward, compiled.cbam_backward


def _is_watched() -> bool:
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
    )


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `cbam::forward`; the tensors are as the signature wants them."""
    x, keep = arguments[0], arguments[-1]
    form = _form(x, arguments[_W0], arguments[_KERNEL], arguments[TENSORS:-1])
    addresses = _addresses(x, arguments[1:RESIDUAL], arguments[RESIDUAL], form)
    if addresses is None or _is_watched():
        return registered.forward(*arguments)
    y, saved, argmax, stats = torch.empty_like(x), _NOTHING, _NOTHING, _NOTHING
    kept = 0, 0
    if keep:
        saved, argmax = torch.empty(form.saved, dtype=form.dtype), torch.empty(form.argmax, dtype=torch.int32)
        kept = saved.data_ptr(), argmax.data_ptr()
    if form.stats:
        stats = torch.empty(form.stats, dtype=form.dtype)
    run, _ = _functions()
    if run(form.numbers, _FORWARD.pack(*addresses, y.data_ptr(), *kept, stats.data_ptr())):
        return registered.forward(*arguments)
    return y, saved, argmax, stats


def backward(*arguments: Any) -> tuple[Any, ...]:
    """Compute `cbam::backward`; returns each gradient in its tensor's shape, None where there is no tensor."""
    grad, x, out = arguments[0], arguments[1], arguments[RESIDUAL + 1]
    saved, argmax = arguments[TENSORS + 1 : TENSORS + 3]
    numbers = (*arguments[TENSORS + 3 :], out is not None)
    form = _form(x, arguments[_W0 + 1], arguments[_KERNEL + 1], numbers)
    addresses = _addresses(x, arguments[2 : RESIDUAL + 1], out, form)
    if (
        addresses is None
        or _is_watched()
        or not _alike(grad, x)
        or not grad.data_ptr()
        or saved.numel() != form.saved
        or argmax.numel() != form.argmax
    ):
        return registered.backward(*arguments)
    dx = torch.empty_like(x)
    found: list[Any] = [dx]
    for i in DIFFERENTIABLE[1:-1]:
        tensor = arguments[i + 1]
        found.append(None if tensor is None else torch.empty_like(tensor))
    found.append(None if out is None else torch.empty_like(x))
    results = [0 if tensor is None else tensor.data_ptr() for tensor in found]
    _, run = _functions()
    packed = _BACKWARD.pack(grad.data_ptr(), *addresses, saved.data_ptr(), argmax.data_ptr(), *results)
    if run(form.numbers, packed):
        return registered.backward(*arguments)
    return tuple(found)


def _alike(map_: Tensor, x: Tensor) -> bool:
    same_form = map_.dtype is x.dtype and map_.shape == x.shape and map_.stride() == x.stride()
    return same_form and map_.is_cpu and not map_.is_neg()
