"""Launch a kernel; with CBAM_AUTOTUNE=1, find its fastest tile first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cbam.ops.triton.blocks import Tile
from cbam.ops.triton.mode import INTERPRETED

Result = TypeVar("Result")

AUTOTUNE = os.environ.get("CBAM_AUTOTUNE") == "1"
_best: dict[tuple[Any, ...], Tile] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Run a kernel on a grid of programs, on the current stream.

    Fused multiply-adds are off: they round a product and a sum once where plain PyTorch rounds twice.
    """
    kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=False, **constants)


def launch_pass(kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
    """Run a kernel that passes over the map in tiles."""
    launch(kernel, grid, *arguments, warps=tile.warps, BC=tile.channels, BP=tile.positions, **constants)


def tuned(run: Callable[[Tile], Result], usual: Tile, *key: Any) -> Result:
    """Return run(tile), with the usual tile, or with autotuning the fastest one for this key.

    Args:
        run: allocates what it needs for the tile and launches one kernel; may be called several times.
        usual: the heuristic's choice.
        key: what the speed depends on: the kernel, the problem, the dtype of the map.
    """
    if not AUTOTUNE:
        return run(usual)
    if key not in _best:
        _best[key] = min(_candidates(usual), key=lambda tile: _seconds(lambda: run(tile)))
    return run(_best[key])


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


def _seconds(run: Callable[[], Any]) -> float:
    """Return the median time of a launch; infinity if the tile needs more than the device has."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    if INTERPRETED:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    try:
        return do_bench(run, return_mode="median")
    except (OutOfResources, torch.cuda.OutOfMemoryError):
        return float("inf")
