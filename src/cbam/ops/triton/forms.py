"""Forms of call: the plan for tensors at multiples of 16 is found once, and started by addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from cbam.ops.form import Form
from cbam.ops.signature import DIFFERENTIABLE, RESIDUAL, TENSORS, OperatorConfig
from cbam.ops.triton import run_backward, run_forward
from cbam.ops.triton.plan import ALIGNMENT, Plan


class TritonForm(Form):
    """A form of call of the GPU operator."""

    def __init__(self, tensors: Sequence[Any], config: OperatorConfig):
        super().__init__(tensors, config)
        self._nothing = tensors[0].new_empty(0)
        self._started: dict[str, _Started] = {}
        there = (0, *self.places, *([RESIDUAL] if self.has_residual else []))
        # The tensors of a plan, in its order: those that there are of the call's, then those that it makes.
        self._forward = (*there, *range(TENSORS, TENSORS + 5))
        given = (0, *[i + 1 for i in (0, *self.places)], *([RESIDUAL + 1] if config.relu else []))
        learned = [k for k, i in enumerate(DIFFERENTIABLE[:-1]) if i in (0, *self.places)]
        first = run_backward.TENSORS
        made = [
            first + k
            for k in (*learned, *([len(DIFFERENTIABLE) - 1] if config.relu else []), len(DIFFERENTIABLE))
        ]
        self._backward = (*given, run_backward.SAVED, run_backward.ARGMAX, *made)

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
        if not addresses or self._is_elsewhere() or reduce(or_, addresses) % ALIGNMENT:
            y, *kept, stats = self._on_its_device(
                run_forward.forward, *self.flat(x, weights, residual), *self.config, keep
            )
            return y, tuple(kept), stats

        def flat() -> list[Any]:
            return self.flat(x, weights, residual)

        name = "keep" if keep else "forward"
        started = self._started.get(name)
        if started is None:
            at = self._flat_addresses(self._forward, addresses, TENSORS)
            plan = run_forward.plan_of((*flat(), *self.config, keep), at)
            started = self._started[name] = _Started(plan, self._forward)
        sizes = started.plan.sizes
        y, nothing, dtype = torch.empty_like(x), self._nothing, self.weights_dtype
        scratch = x.new_empty(sizes[3], dtype=dtype)
        saved = argmax = stats = nothing
        if keep:
            saved, argmax = x.new_empty(sizes[0], dtype=dtype), x.new_empty(sizes[1], dtype=torch.int32)
        if sizes[2]:
            stats = x.new_empty(sizes[2], dtype=dtype)
        addresses += [t.data_ptr() for t in (y, saved, argmax, stats, scratch)]
        started.start(addresses, lambda: (*flat(), y, saved, argmax, stats, scratch))
        return y, (saved, argmax), stats

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
        if addresses and self.are_of_the_map(grad, x, out) and not self._is_elsewhere():
            addresses = [grad.data_ptr(), *addresses, *([] if out is None else [out.data_ptr()])]
            addresses += [t.data_ptr() for t in kept]
            if not reduce(or_, addresses) % ALIGNMENT:
                return self._aligned_backward(addresses, grad, x, weights, out, kept)
        found = self._on_its_device(
            run_backward.backward, grad, *self.flat(x, weights, out), *kept, *self.kept_numbers
        )
        return self.chosen(found, weights)

    def _aligned_backward(
        self,
        addresses: list[int],
        grad: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        out: Tensor | None,
        kept: Sequence[Tensor],
    ) -> list[Tensor]:
        def flat() -> list[Any]:
            return [grad, *self.flat(x, weights, out), *kept]

        started = self._started.get("backward")
        if started is None:
            at = self._flat_addresses(self._backward, addresses, run_backward.TENSORS)
            plan = run_backward.plan_of((*flat(), *self.kept_numbers), at)
            started = self._started["backward"] = _Started(plan, self._backward)
        made = [torch.empty_like(x), *[torch.empty_like(weights[j]) for j in self.learned]]
        if out is not None:
            made.append(torch.empty_like(x))
        scratch = kept[0].new_empty(started.plan.sizes[-1])
        addresses += [t.data_ptr() for t in (*made, scratch)]
        started.start(addresses, lambda: self._all_made(flat(), made, scratch))
        return made

    def _all_made(self, given: list[Any], made: Sequence[Tensor], scratch: Tensor) -> list[Any]:
        """Return all tensors of the backward plan, with nothing where there is none."""
        found = [*given, *[self._nothing] * len(DIFFERENTIABLE), scratch]
        places = self._backward[-len(made) - 1 : -1]
        for i, t in zip(places, made, strict=True):
            found[i] = t
        return found

    def _flat_addresses(self, places: Sequence[int], addresses: Sequence[int], count: int) -> list[int]:
        found = [0] * count
        for i, address in zip(places, addresses, strict=False):
            found[i] = address
        return found

    def _on_its_device(self, run: Callable[..., Any], *arguments: Any) -> Any:
        with torch.cuda.device(self.device) if self._is_elsewhere() else contextlib.nullcontext():
            return run(*arguments)

    def _is_elsewhere(self) -> bool:
        """Return whether another GPU is the current one."""
        return self.device >= 0 and self.device != torch.cuda.current_device()


class _Started:
    """A plan, started by the addresses of the tensors that there are."""

    def __init__(self, plan: Plan, order: Sequence[int]):
        self.plan = plan
        self._rank = {i: rank for rank, i in enumerate(order)}
        self._of: Any = None
        self._places: list[tuple[int, int]] = []

    def start(self, addresses: Sequence[int], tensors: Callable[[], Sequence[Any]]) -> None:
        """Run the kernels on the current stream."""
        plan = self.plan
        if self._of is not plan.places:
            self._of = plan.places
            self._places = [(self._rank[base], offset) for base, offset in plan.places]
        if not plan.start_at([addresses[rank] + offset for rank, offset in self._places]):
            plan.start_through_triton(tensors())
