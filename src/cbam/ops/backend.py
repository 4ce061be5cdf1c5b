"""What an implementation of the operator offers: the protocol that dispatch walks over.

A backend is a module, or a folder whose `__init__` is its only door; `dispatch.OPERATORS` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from cbam.ops.form import Form
from cbam.ops.signature import OperatorConfig


class Backend(Protocol):
    """One implementation of the operator."""

    name: str  # as in set_backend
    title: str  # in messages: "the C++ operator"
    device: str  # in messages: "the CPU"
    device_types: tuple[str, ...]  # of the maps that it computes

    def unavailable_reason(self) -> str | None:
        """Return why it cannot run on this machine, None if it can; loads what it needs at the first call."""

    def unsupported_reason(self, x: Tensor) -> str | None:
        """Return why it cannot compute a map on one of its devices, None if it can."""

    def form(self, tensors: Sequence[Any], config: OperatorConfig) -> Form:
        """Return the form of a call in eager mode, by the operator's tensors and numbers."""

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute `cbam::forward` below autograd; takes `signature.ForwardArguments`, flat."""

    def backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Compute `cbam::backward` below autograd; takes `signature.BackwardArguments`, flat."""
