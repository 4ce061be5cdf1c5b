"""A call as a list of launches, made once for each kind of call (`plans.py`) and then started with little work.

The first start goes through Triton's own launch, which compiles; later ones call the compiled kernels with the
addresses of that call. With hooks on launches (`triton.knobs.runtime`, for profilers) and in the interpreter every
start is like the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from cbam.ops.triton.blocks import Tile
from cbam.ops.triton.mode import INTERPRETED

ALIGNMENT = 16
"""What Triton looks at in an address, in bytes."""


class Part(NamedTuple):
    """A piece of one of the call's tensors, as an argument of a kernel.

    Args:
        base: which tensor, in the list that `Plan.start` gets.
        offset: of its first element, in bytes.
        count: of its elements.
        dtype: of its elements.
    """

    base: int
    offset: int
    count: int
    dtype: torch.dtype

    def of(self, tensors: Sequence[Any]) -> Tensor:
        """Return the piece itself."""
        whole: Tensor = tensors[self.base]
        if self.offset == 0 and whole.dtype == self.dtype:
            return whole  # kernels need only its address and type
        flat = whole.view(self.dtype)
        start = self.offset // flat.element_size()
        return flat[start : start + self.count]


class Room:
    """Room for parts in a flat tensor that the call makes.

    Args:
        base: which tensor, as of a part.
        dtype: of the tensor.
        alignment: of its parts, in bytes.
    """

    def __init__(self, base: int, dtype: torch.dtype, alignment: int = 1):
        self.dtype, self._base, self._bytes, self._alignment = dtype, base, 0, alignment

    @property
    def size(self) -> int:
        """How many elements the tensor must have."""
        return -(-self._bytes // self.dtype.itemsize)

    def part(self, count: int, dtype: torch.dtype | None = None) -> Part:
        """Return the next part, of the tensor's type unless another one is given; nothing is in it at first."""
        dtype = dtype or self.dtype
        start = -(-self._bytes // self._alignment) * self._alignment
        self._bytes = start + count * dtype.itemsize
        return Part(self._base, start, count, dtype)


class Launch(NamedTuple):
    """One kernel with everything but addresses; constants and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    constants: dict[str, Any]

    def start(self, tensors: Sequence[Any]) -> Any:
        """Launch through Triton, and return the compiled kernel; None in the interpreter."""
        options = self.options | ({"launch_pdl": True} if _overlaps() else {})
        given = [a.of(tensors) if isinstance(a, Part) else a for a in self.arguments]
        return self.kernel[self.grid](*given, **options, **self.constants)

    def values(self) -> list[Any]:
        """Return the values of all parameters, in order."""
        names = self.kernel.arg_names[len(self.arguments) :]
        return [*self.arguments, *(self.constants[name] for name in names)]


class Plan:
    """The launches of one kind of call.

    Args:
        tensors: arguments of the call; the parts in `given` stand for them.
        made: how many tensors the call makes; the last of them is the scratch.
        dtype: of the scratch.
        tiles: of kernels that shall not have the usual one.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor | None],
        made: int,
        dtype: torch.dtype,
        tiles: dict[str, Tile] | None = None,
    ):
        self.given = [None if t is None else Part(i, 0, t.numel(), t.dtype) for i, t in enumerate(tensors)]
        self.scratch = Room(len(tensors) + made - 1, dtype, ALIGNMENT)
        self.tiles: dict[str, Tile] = {}
        self.launches: list[Launch] = []
        self.sizes: tuple[int, ...] = ()  # of what the call makes
        self._wanted = tiles or {}
        self.places: Sequence[tuple[int, int]] = ()
        """What kernels read and write, once compiled: which tensor, in the list that `start` gets, and the offset."""
        self._ready: list[tuple[Callable[..., Any], Callable[[list[Any]], tuple[Any, ...]]]] | None = None

    def tile(self, name: str, usual: Tile) -> Tile:
        """Return the tile for a kernel that passes over the map."""
        self.tiles[name] = self._wanted.get(name, usual)
        return self.tiles[name]

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any
    ) -> None:
        """Add a launch of a kernel on a grid of programs.

        Fused multiply-adds are off: they round a product and a sum once where plain PyTorch rounds twice.
        """
        options = {"num_warps": warps, "enable_fp_fusion": False}
        self.launches.append(Launch(kernel, grid, arguments, options, constants))

    def launch_pass(
        self, kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any
    ) -> None:
        """Add a launch of a kernel that passes over the map in tiles."""
        self.launch(
            kernel, grid, *arguments, warps=tile.warps, BC=tile.channels, BP=tile.positions, **constants
        )

    def start(self, tensors: Sequence[Any], addresses: Sequence[int]) -> None:
        """Run the kernels on the current stream.

        Args:
            tensors: of the call, then what the call made, then the scratch.
            addresses: of the same; 0 for None.
        """
        if not self.start_at([addresses[base] + offset for base, offset in self.places]):
            self.start_through_triton(tensors)

    def start_at(self, places: Sequence[int]) -> bool:
        """Run the kernels if they are compiled and nobody watches launches; return whether they run.

        Args:
            places: the addresses of `self.places`.
        """
        if self._ready is None or _watched():
            return False
        values = [self._stream(self._device), *self._constants, *places]
        for run, pick in self._ready:
            run(*pick(values))
        return True

    def forget(self) -> None:
        """Forget what was compiled."""
        self._ready, self.places = None, ()

    def start_through_triton(self, tensors: Sequence[Any], only: str | None = None) -> None:
        """Run the kernels, or only one, as Triton launches any kernel, and keep what it compiled."""
        compiled = [
            launch.start(tensors) for launch in self.launches if only in (None, launch.kernel.__name__)
        ]
        if not INTERPRETED and only is None and all(kernel is not None for kernel in compiled):
            self._prepare(compiled)

    def _prepare(self, compiled: Sequence[Any]) -> None:
        """Lay out what a start passes to each compiled kernel."""
        constants: list[Any] = []
        places: list[tuple[int, int]] = []

        def constant(value: Any) -> tuple[bool, int]:
            constants.append(value)
            return False, len(constants) - 1

        def address(part: Part) -> tuple[bool, int]:
            if part[:2] not in places:
                places.append(part[:2])
            return True, places.index(part[:2])

        none = constant(None)
        rows = []
        for launch, kernel in zip(self.launches, compiled, strict=True):
            first, second, third = (*launch.grid, 1, 1)[:3]
            row = [constant(first), constant(second), constant(third), None]  # the stream
            row += [constant(kernel.function), constant(kernel.packed_metadata), none, none, none]
            row += [address(v) if isinstance(v, Part) else constant(v) for v in launch.values()]
            rows.append(row)
        self._device, self._stream = driver.active.get_current_device(), driver.active.get_current_stream
        self._constants, self.places = constants, places
        shift = 1 + len(constants)
        self._ready = [
            (kernel.run, itemgetter(*[0 if at is None else at[1] + (shift if at[0] else 1) for at in row]))
            for kernel, row in zip(compiled, rows, strict=True)
        ]


def _overlaps() -> bool:
    """Return whether the device can begin a kernel before the end of the one before (`wait_for_the_kernel_before`)."""
    if INTERPRETED:
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def _watched() -> bool:
    """Return whether there are hooks on launches."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)
