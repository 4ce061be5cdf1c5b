"""With CBAM_AUTOTUNE=1: find the fastest tile of each kernel that passes over the map, once for each kind of call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cbam.ops.triton.blocks import Tile
from cbam.ops.triton.mode import INTERPRETED
from cbam.ops.triton.plan import Plan

AUTOTUNE = os.environ.get("CBAM_AUTOTUNE") == "1"


def fastest(make: Callable[[dict[str, Tile]], Plan], tensors: Callable[[Plan], Sequence[Any]]) -> Plan:
    """Return the plan whose kernels have their fastest tiles, each found with the usual tiles of the others.

    Args:
        make: returns the plan with some tiles given.
        tensors: returns all tensors of a start.
    """
    usual, best = make({}).tiles, dict[str, Tile]()
    for name, tile in usual.items():
        seconds = {}
        for candidate in _candidates(tile):
            plan = make({name: candidate})
            seconds[candidate] = _seconds(plan, tensors(plan), name)
        best[name] = min(seconds, key=lambda tile: seconds[tile])
    return make(best)


def _candidates(usual: Tile) -> list[Tile]:
    """Return tiles around the usual one: either side halved or doubled, with fewer or more warps."""
    channels, positions, warps = usual
    shapes = [
        (channels, positions), (2 * channels, positions), (channels, 2 * positions),
        (max(1, channels // 2), positions), (channels, max(1, positions // 2)),
        (2 * channels, max(1, positions // 2)), (max(1, channels // 2), 2 * positions),
    ]  # fmt: skip
    return [
        Tile(c, p, w) for c, p in shapes for w in (max(1, warps // 2), warps, 2 * warps) if c * p <= 2**14
    ]


def _seconds(plan: Plan, tensors: Sequence[Any], name: str) -> float:
    """Return the median time of one kernel of a plan; infinity if its tile needs more than the device has."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        plan.start_through_triton(tensors)  # the kernels before it, so that it has its input
        if INTERPRETED:
            start = time.perf_counter()
            plan.start_through_triton(tensors, only=name)
            return time.perf_counter() - start
        return do_bench(lambda: plan.start_through_triton(tensors, only=name), return_mode="median")
    except (OutOfResources, torch.cuda.OutOfMemoryError):
        return float("inf")
