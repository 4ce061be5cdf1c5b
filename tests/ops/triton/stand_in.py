"""A stand-in for Triton's driver: kernels are compiled for a GPU that is not there, and nothing is started.

Everything before the start is what happens on a GPU: the choice of tiles, the specialisation by types and divisibility,
the compiler down to machine code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver


class Driver:
    """Names the target.

    Args:
        backend: "cuda" or "hip".
        architecture: 90 for sm_90, or "gfx942".
        warp: Threads of a warp.
    """

    def __init__(self, backend: str, architecture: str, warp: str = "32"):
        self.target = GPUTarget(backend, int(architecture) if backend == "cuda" else architecture, int(warp))
        self.utils = self

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Return made-up handles, registers, spills and largest number of threads."""
        return 1, 2, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return how much shared memory a program may have."""
        return {"max_shared_mem": 232448 if self.target.backend == "cuda" else 65536}

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the only stream."""
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Return what would start the kernel."""
        return lambda *arguments: None


@dataclass
class Launch:
    """One launch: the kernel's name, its grid, its arguments by name, and what the compiler made of it."""

    name: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    compiled: Any = field(repr=False)


@contextmanager
def recorded(target: Driver) -> Iterator[list[Launch]]:
    """Compile for the target inside the block, and list the launches."""
    launches: list[Launch] = []
    run = JITFunction.run

    def record(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *arguments, grid=grid, warmup=warmup, **options)
        named = dict(zip(self.arg_names, arguments, strict=False)) | options
        launches.append(Launch(self.__name__, tuple(grid), named, compiled.metadata.num_warps, compiled))
        return compiled

    from cbam.ops.triton import plans

    driver.set_active(target)
    plans.forget()
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run
        plans.forget()
