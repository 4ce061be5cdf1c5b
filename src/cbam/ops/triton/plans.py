"""The plans of all kinds of call so far, found by what grids, tiles and Triton's specialisation depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from cbam.ops.triton import tune
from cbam.ops.triton.blocks import Tile
from cbam.ops.triton.plan import ALIGNMENT, Plan

_MOST = 4096  # detectors see maps of many sizes
_plans: dict[Any, Plan] = {}


def addresses_of(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return where tensors are in memory, 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def kind_of(
    tensors: Sequence[Tensor | None], addresses: Sequence[int], x: Tensor, options: Sequence[Any]
) -> Any:
    """Return what tells calls of one direction apart; a name for the dict of plans.

    Args:
        tensors: of the call; all maps among them have the layout of x.
        addresses: of the tensors; Triton looks whether they are multiples of 16.
        x: the map.
        options: the call's numbers.
    """
    return (
        x.shape,
        x.device,
        options,
        tuple(
            [
                None if t is None else (t.dtype, t.numel(), None if t.is_contiguous() else t.stride())
                for t in tensors
            ]
        ),
        reduce(or_, addresses) % ALIGNMENT and tuple([address % ALIGNMENT for address in addresses]),
    )


def plan_for(
    kind: Any, make: Callable[[dict[str, Tile]], Plan], tensors: Callable[[Plan], Sequence[Any]]
) -> Plan:
    """Return the plan for a kind of call, made if it is the first one.

    Args:
        kind: of the call.
        make: returns the plan, with tiles for some of its kernels given.
        tensors: returns those of a call with a plan, for trying tiles.
    """
    plan = _plans.get(kind)
    if plan is None:
        plan = tune.fastest(make, tensors) if tune.AUTOTUNE else make({})
        if len(_plans) >= _MOST:
            _plans.clear()
        _plans[kind] = plan
    return plan


def forget() -> None:
    """Forget all plans: they hold what was compiled for the driver that was active."""
    for plan in _plans.values():  # forms of call have them too
        plan.forget()
    _plans.clear()
