"""What a check works on: modules of one kind and maps for them, the same ones at each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from cbam.nn.base import AttentionModule
from cbam.nn.foreign import ForeignAttention
from cbam.nn.kind import AttentionKind
from cbam.ops.dispatch import set_backend

MEMORY_FORMATS = ("contiguous", "channels_last")
# What rounding may do, as a share of the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Subject:
    """A kind of attention under the circumstances of one case.

    Args:
        kind: of attention.
        given: what the user named: a name, a class or a function.
        options: of the kind.
        backend: in force.
        dtype: of weights and maps.
        memory_format: of maps, one of `MEMORY_FORMATS`.
        shape: of the map, (N, C, ...).
        device: of both.
    """

    kind: AttentionKind
    given: Any
    options: Mapping[str, Any]
    backend: str
    dtype: torch.dtype
    memory_format: str
    shape: tuple[int, ...]
    device: str

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def dims(self) -> int:
        """How many sizes follow C."""
        return len(self.shape) - 2

    @contextmanager
    def circumstances(self) -> Iterator[None]:
        """Put the backend in force; the state of the generators is that from before afterwards."""
        devices = list(range(torch.cuda.device_count())) if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices), set_backend(self.backend):
            torch.manual_seed(0)
            yield

    def build(self, seed: int = 0) -> AttentionModule:
        """Return a module in evaluation mode, with no weight at zero and statistics that have moved."""
        torch.manual_seed(seed)
        options = {**self.options, "dims": self.dims}
        block = self.kind.build(self.channels, options, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            block.train()(self.map((max(2, self.shape[0]), *self.shape[1:])))
        return block.eval()

    def map(self, shape: tuple[int, ...] | None = None, seed: int = 1) -> Tensor:
        """Return a random map, by default of the case's shape."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.shape if shape is None else shape, generator=generator, dtype=torch.float64)
        x = x.to(self.device, self.dtype)
        if self.memory_format == "channels_last" and x.dim() in _LAST:
            x = x.contiguous(memory_format=_LAST[x.dim()])
        return x

    def close(
        self, got: Tensor, expected: Tensor, what: str, tolerance: float | None = None, scale: float = 1e-6
    ) -> None:
        """Raise unless two tensors differ by no more than rounding can explain.

        Args:
            got, expected: the tensors.
            what: they are, for the message.
            tolerance: as a share of the largest value; by default that of the dtype.
            scale: of the numbers that they were computed from, where that is larger than they are.
        """
        same(got.shape, expected.shape, f"shape of {what}")
        if not got.numel():
            return
        a, b = got.detach().double(), expected.detach().double()
        expect(bool(a.isfinite().all()), f"{what} is not finite")
        largest = b.abs().amax().item()
        allowed = (TOLERANCE[self.dtype] if tolerance is None else tolerance) * max(largest, scale)
        error = (a - b).abs().amax().item()
        expect(error <= allowed, f"{what}: off by {error:.2g}, allowed is {allowed:.2g}")


def inner(block: AttentionModule) -> nn.Module:
    """Return the user's own module."""
    return block.module if isinstance(block, ForeignAttention) else block


def expect(holds: bool, otherwise: str) -> None:
    """Raise an `AssertionError` unless something holds."""
    if not holds:
        raise AssertionError(otherwise)


def same(got: Any, expected: Any, what: str) -> None:
    """Raise unless two values are equal."""
    if got != expected:
        raise AssertionError(f"{what}: {_short(got)} instead of {_short(expected)}")


def same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless two tensors are equal to the bit."""
    same((got.shape, got.dtype), (expected.shape, expected.dtype), f"shape and dtype of {what}")
    if not torch.equal(got, expected):
        different = int((got != expected).sum())
        raise AssertionError(f"{what}: {different:,} of {got.numel():,} values differ")


def not_applicable(why: str) -> SkipTest:
    """Return the exception of a check that says nothing about this kind; pytest counts it as skipped."""
    return SkipTest(why)


def _short(value: Any) -> str:
    if isinstance(value, torch.Size):
        value = tuple(value)
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}..."
