"""Call the compiled operator without torch's dispatcher: `csrc/direct.cpp` takes numbers and addresses.

On a small map the dispatcher takes longer than the arithmetic. Whoever watches calls in there (a profiler, the counter
of FLOPs, a mode that replaces tensors) sees the registered operator; it also gets what is not as it should be.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from cbam.ops import library, registered
from cbam.ops.form import KERNEL, Form
from cbam.ops.signature import DIFFERENTIABLE, RESIDUAL, OperatorConfig, Weights

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NUMBERS = Struct("=12q d q d q")
_NOTHING = torch.empty(0)


class DirectForm(Form):
    """A form of call of the compiled operator."""

    def __init__(self, tensors: Sequence[Any], config: OperatorConfig):
        super().__init__(tensors, config)
        x, kernel, hidden = tensors[0], tensors[KERNEL], self.hidden
        n, c, height, width = x.shape
        positions, planes = n * height * width, 2 if config.descriptor > 2 else 1
        k = 0 if kernel is None else kernel.shape[-1]
        # A map of one position is a row of channels either way.
        last = not x.is_contiguous() or height * width == 1
        self._numbers = _NUMBERS.pack(_TYPES[x.dtype], *x.shape, last, hidden, k, *config)
        gates = Weights(hidden * c, hidden, hidden * c, c, 1, planes * k * k, 1, 1, 1, 1, 1)  # type: ignore[arg-type]
        expected = (0, *gates, c, c, c, c)
        self._fits = x.numel() > 0 and all(
            expected[i] == count for i, count in zip(self.places, self._counts, strict=True)
        )
        training = config.norm_training and k > 0
        self._saved = (3 * n * c + 2 * n * hidden if hidden else 0) + (
            (3 + training) * positions + 2 * training if k else 0
        )
        self._argmax = (n * c if hidden else 0) + (positions if k else 0)
        self._stats = 2 if training else 0
        itemsize = self.weights_dtype.itemsize
        self._saved_bytes = self._saved * itemsize
        self._kept = self._saved + -(-4 * self._argmax // itemsize)
        there = [0, *self.places, *([RESIDUAL] if self.has_residual else [])]
        given = "".join("Q" if i in there else "8x" for i in range(RESIDUAL + 1))
        learned = "".join("Q" if i in self.places else "8x" for i in DIFFERENTIABLE[1:-1])
        out = "Q" if config.relu else "8x"
        self._forward = Struct(f"={given}4Q")
        self._backward = Struct(f"=Q{given[:-1] if self.has_residual else given[:-2]}{out}2QQ{learned}{out}")

    def forward(
        self,
        addresses: list[int] | None,
        x: Tensor,
        weights: Sequence[Tensor],
        residual: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Compute `cbam::forward`."""
        if addresses and residual is not None:
            addresses.append(residual.data_ptr())
        if self._fits and addresses and addresses[-1] and not _is_watched():
            y, stats, at = torch.empty_like(x), _NOTHING, (0, 0)
            kept: tuple[Tensor, ...] = ()
            if keep:  # numbers, and behind them indices
                memory = torch.empty(self._kept, dtype=self.weights_dtype, device="cpu")
                start = memory.data_ptr()
                kept, at = (memory,), (start, start + self._saved_bytes)
            if self._stats:
                stats = torch.empty(self._stats, dtype=self.weights_dtype, device="cpu")
            run, _ = _functions()
            if not run(self._numbers, self._forward.pack(*addresses, y.data_ptr(), *at, stats.data_ptr())):
                return y, kept, stats
        y, *found, stats = registered.forward(*self.flat(x, weights, residual), *self.config, keep)
        return y, tuple(found), stats

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        out: Tensor | None,
        kept: Sequence[Tensor],
    ) -> list[Tensor]:
        """Compute `cbam::backward`."""
        addresses = self.addresses(x, weights)
        if (
            self._fits
            and addresses
            and len(kept) == 1
            and kept[0].numel() == self._kept
            and self.are_of_the_map(grad, x, out)
            and not _is_watched()
        ):
            found = [torch.empty_like(x), *[torch.empty_like(weights[j]) for j in self.learned]]
            if out is not None:
                addresses.append(out.data_ptr())
                found.append(torch.empty_like(x))
            start = kept[0].data_ptr()
            _, run = _functions()
            packed = self._backward.pack(
                grad.data_ptr(), *addresses, start, start + self._saved_bytes, *[t.data_ptr() for t in found]
            )
            if not run(self._numbers, packed):
                return found
        if len(kept) == 1:
            saved, indices = kept[0][: self._saved], kept[0][self._saved :].view(torch.int32)
            kept = saved, indices[: self._argmax]
        flat = self.flat(x, weights, out)
        return self.chosen(registered.backward(grad, *flat, *kept, *self.kept_numbers), weights)


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
