"""What calls have in common that differ in their tensors only: worked out once, and kept by who calls often.

A backend's form takes addresses. Everything that an address does not tell is compared before each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cbam.ops.gradients import like_its_tensor
from cbam.ops.signature import (
    CONSTANTS,
    DIFFERENTIABLE,
    KEPT_NUMBERS,
    RESIDUAL,
    TENSORS,
    OperatorConfig,
    Weights,
)

# Positions among the operator's tensors.
W0, KERNEL = (1 + Weights._fields.index(name) for name in ("w0", "kernel"))


class Form:
    """A form of call; subclasses compute.

    Args:
        tensors: the map, then all others in the operator's order, as it takes them.
        config: the numbers.
    """

    def __init__(self, tensors: Sequence[Any], config: OperatorConfig):
        x = tensors[0]
        self.config = config
        self.has_residual = tensors[RESIDUAL] is not None
        self.shape, self.strides = x.shape, x.stride()
        self.dtype, self.device, self.on_cpu = x.dtype, x.get_device(), x.is_cpu
        self.weights_dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        # Which of the operator's tensors there are between the map and the residual, and among those which are learned.
        self.places = tuple(i for i in range(1, RESIDUAL) if tensors[i] is not None)
        self.learned = tuple(j for j, i in enumerate(self.places) if i in DIFFERENTIABLE)
        self.constant = tuple(j for j, i in enumerate(self.places) if i - 1 in CONSTANTS)
        self._counts = tuple(tensors[i].numel() for i in self.places)
        self.hidden = 0 if tensors[W0] is None else tensors[W0].shape[0]
        self.has_kernel = tensors[KERNEL] is not None

    def addresses(self, x: Tensor, weights: Sequence[Any]) -> list[int] | None:
        """Return where the map and the weights are; None if one is not as it was, or has no memory of its own.

        Args:
            x: a map of this form's shape, strides, type and device.
            weights: from the first one on; those that do not exist yet may be missing at the end.
        """
        if x.is_neg():
            return None
        dtype, device, found = self.weights_dtype, self.device, [x.data_ptr()]
        for w, count in zip(weights, self._counts, strict=False):
            if (
                (type(w) is nn.Parameter or type(w) is Tensor)
                and w.dtype is dtype
                and w.numel() == count
                and w.is_contiguous()
                and w.get_device() == device
                and not w.is_neg()
            ):
                found.append(w.data_ptr())
            else:
                return None
        return found if all(found) else None

    def is_of_the_map(self, map_: Any) -> bool:
        """Return whether a tensor is of the map's shape, strides, type and device."""
        return (
            (type(map_) is Tensor or type(map_) is nn.Parameter)
            and map_.shape == self.shape
            and map_.stride() == self.strides
            and map_.dtype is self.dtype
            and map_.get_device() == self.device
            and map_.is_cpu is self.on_cpu
            and not map_.is_neg()
        )

    def are_of_the_map(self, grad: Tensor, x: Tensor, out: Tensor | None) -> bool:
        """Return whether a gradient, which has been made like the map, and what was kept are like the map."""
        return (
            grad.stride() == self.strides
            and self.is_of_the_map(x)
            and (out is None or self.is_of_the_map(out))
            and grad.data_ptr() != 0
        )

    def flat(self, x: Any, weights: Sequence[Any], last: Any) -> list[Any]:
        """Return all of the operator's tensors in its order, None for those that there are not."""
        found = [None] * TENSORS
        found[0], found[RESIDUAL] = x, last
        for i, w in zip(self.places, weights, strict=True):
            found[i] = w
        return found

    def forward(
        self,
        addresses: list[int] | None,
        x: Tensor,
        weights: Sequence[Tensor],
        residual: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Compute `cbam::forward`; return the map, what backward needs, and the batch statistics.

        What backward needs begins with the numbers of the signature's `saved`.

        Args:
            addresses: of the map and all weights; None if one is not as `addresses` wants it.
            x, weights, residual, keep: as in the signature, without the tensors that there are not.
        """
        raise NotImplementedError

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        out: Tensor | None,
        kept: Sequence[Tensor],
    ) -> list[Tensor]:
        """Compute `cbam::backward`; return the gradients of the map and of the learned weights, then the masked one.

        The last one is there if there is `out`. Each has its tensor's shape.

        Args:
            grad: of y, in the map's type and memory format.
            x, weights, out: as in the signature, without the tensors that there are not.
            kept: what `forward` returned for it.
        """
        raise NotImplementedError

    def chosen(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Return of the gradients that the operator returns those that `backward` does."""
        by_place = dict(zip(DIFFERENTIABLE, gradients, strict=True))
        found = [by_place[0], *[like_its_tensor(by_place[self.places[j]], weights[j]) for j in self.learned]]
        return [*found, by_place[RESIDUAL]] if self.config.relu else found

    @property
    def kept_numbers(self) -> tuple[Any, ...]:
        """Those of the numbers that `cbam::backward` gets."""
        return self.config[:KEPT_NUMBERS]
