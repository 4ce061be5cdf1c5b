"""What the axes of a tensor hold: channels, positions or samples, told by the operations that made it.

A shape does not say where the channels are: (1, 7, 7, 768) may be 768 channels last, or 7 channels first. Convolutions
and norms do say it, and every later step keeps it: what a linear layer makes along an axis of channels is channels,
along an axis of positions positions; a permutation moves the axes; a view joins or splits them. So an axis is a list of
factors, each with what it holds. ShuffleNet's view of 116 channels as (2, 58), transposed and joined again, is channels
throughout; a map that is flattened for a classifier holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

CHANNELS, POSITIONS, SAMPLES, UNKNOWN = "channels", "positions", "samples", "unknown"


class Factor(NamedTuple):
    """A part of an axis: what it holds and how many."""

    holds: str
    size: int


Axis: TypeAlias = "tuple[Factor, ...]"
Axes: TypeAlias = "tuple[Axis, ...]"
Known: TypeAlias = "Callable[[Any], Axes | None]"  # the axes of an argument that comes from the input

VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy")
MOVES = (*VIEWS, "permute", "transpose", "t")
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "linear": 0}  # -> position of the left factor
_REDUCTIONS = (
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "prod",
    "norm",
    "linalg_vector_norm",
)
_CHANNELS_SECOND = (
    "pool",
    "upsample",
    "batch_norm",
    "group_norm",
    "pixel_",
    "im2col",
    "col2im",
    "grid_sampler",
)


def channel_axis(axes: Axes) -> int | None:
    """Return the one axis that holds channels and nothing else; None if there is none, or several.

    >>> channel_axis(maps((2, 16, 8, 8)))
    1
    """
    found = [i for i, axis in enumerate(axes) if axis and all(f.holds == CHANNELS for f in axis)]
    return found[0] if len(found) == 1 else None


def unknown(shape: Sequence[int]) -> Axes:
    """Return the axes of a tensor of which nothing is known."""
    return tuple((Factor(UNKNOWN, size),) for size in shape)


def maps(shape: Sequence[int]) -> Axes:
    """Return the axes of maps (N, C, ...)."""
    holds = (SAMPLES, CHANNELS, *[POSITIONS] * (len(shape) - 2))
    return tuple((Factor(name, size),) for name, size in zip(holds, shape, strict=True))


def axes_of(name: str, args: Sequence[Any], known: Known, output: Tensor) -> Axes:
    """Return the axes of an operation's result.

    Args:
        name: of the operation, without overload.
        args: its positional arguments.
        known: function (argument) -> its axes.
        output: the result, or one of several.
    """
    shape = tuple(output.shape)
    first = known(args[0]) if args else None
    if name == "convolution" and len(shape) > 2:
        return maps(shape)
    if name in _PRODUCTS or name.startswith("_scaled_dot_product"):
        return _product(name, args, known, shape)
    if first is not None and name in ("native_layer_norm", "_fused_rms_norm") and len(args[1]) == 1:
        return (*first[:-1], _whole(CHANNELS, shape[-1]))
    if first is not None and (found := _rearranged(name, args, first, shape)) is not None:
        return found
    if name in ("cat", "stack"):
        return _joined(name, args, known, shape)
    parents = [axes for axes in map(known, _flat(args)) if axes is not None]
    found = _together(parents, shape)
    says = any(part in name for part in _CHANNELS_SECOND) and len(shape) > 2
    return maps(shape) if says and _is_unknown(found[1]) else found


def _whole(holds: str, size: int) -> Axis:
    return (Factor(holds, size),)


def _flat(args: Any) -> list[Any]:
    found: list[Any] = []
    for arg in args:
        found += _flat(arg) if isinstance(arg, (list, tuple)) else [arg]
    return found


def _resized(axis: Axis, size: int) -> Axis:
    """Return an axis of another size, as after slicing, pooling or padding."""
    if prod(f.size for f in axis) == size:
        return axis
    kinds = {f.holds for f in axis}
    return _whole(kinds.pop() if len(kinds) == 1 else UNKNOWN, size)


def _together(parents: list[Axes], shape: tuple[int, ...]) -> Axes:
    """Return the axes of a result that has those of its arguments, aligned from the right as in broadcasting."""
    axes: list[Axis] = []
    for i, size in enumerate(shape):
        behind = len(shape) - i
        same = [axes_[-behind] for axes_ in parents if len(axes_) >= behind and len(axes_) <= len(shape)]
        exact = [axis for axis in same if prod(f.size for f in axis) == size] or same
        told = {tuple(f.holds for f in axis): axis for axis in exact if not _is_unknown(axis)}
        if len({_kind(axis) for axis in told.values()}) != 1:
            axes.append(_whole(UNKNOWN, size))
        else:
            axes.append(_resized(next(iter(told.values())), size))
    return tuple(axes)


def _is_unknown(axis: Axis) -> bool:
    return any(f.holds == UNKNOWN for f in axis) or not axis


def _kind(axis: Axis) -> str:
    kinds = {f.holds for f in axis if f.size > 1 or len(axis) == 1}
    return CHANNELS if kinds == {CHANNELS} else "mixed" if CHANNELS in kinds else POSITIONS


def _product(name: str, args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Axes:
    """Return the axes of a matrix product: rows of the left factor, columns of the right one."""
    if name.startswith("_scaled_dot_product"):
        left, right, inner = known(args[0]), known(args[2]), None
    else:
        at = _PRODUCTS[name]
        left, right = known(args[at]), known(args[at + 1])
        inner = left[-1] if left else None
    if left is None or len(left) != len(shape):  # a weight times the input, or a result that nobody plans for
        return unknown(shape)
    rows = tuple(_resized(axis, size) for axis, size in zip(left[:-1], shape[:-1], strict=True))
    if right is not None:
        return (*rows, _resized(right[-1], shape[-1]))
    mixes_positions = inner is not None and not _is_unknown(inner) and _kind(inner) == POSITIONS
    return (*rows, _whole(POSITIONS if mixes_positions else CHANNELS, shape[-1]))


def _rearranged(name: str, args: Sequence[Any], axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Return the axes after an operation that moves, joins, splits, adds or drops some; None for others."""
    rank = len(axes)
    if name in VIEWS:
        return _viewed(axes, shape)
    if name == "permute":
        return tuple(axes[i] for i in args[1])
    if name in ("transpose", "t"):
        i, j = (d % rank for d in args[1:3]) if name == "transpose" else (0, rank - 1)
        moved = list(axes)
        moved[i], moved[j] = moved[j], moved[i]
        return tuple(moved)
    if name == "unsqueeze":
        at = args[1] % (rank + 1)
        return (*axes[:at], (), *axes[at:])
    if name == "squeeze":
        chosen = (
            range(rank) if len(args) < 2 else args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        )
        gone = {d % rank for d in chosen if prod(f.size for f in axes[d]) == 1}
        return tuple(axis for i, axis in enumerate(axes) if i not in gone)
    if name in ("select", "unbind"):
        at = (args[1] if len(args) > 1 else 0) % rank
        return (*axes[:at], *axes[at + 1 :])
    if name in _REDUCTIONS and len(args) > 1 and len(shape) < rank:
        given = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        reduced = {d % rank for d in given if isinstance(d, int)}
        left = tuple(axis for i, axis in enumerate(axes) if i not in reduced)
        return left if len(left) == len(shape) else unknown(shape)
    return None


def _viewed(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Return the axes of a view: the factors in order, split where an axis ends inside one."""
    waiting = [factor for axis in axes for factor in axis]
    found: list[Axis] = []
    for size in shape:
        taken: list[Factor] = []
        missing = size
        if missing == 1 and waiting and waiting[0].size == 1:
            taken.append(waiting.pop(0))
        while missing > 1 and waiting:
            factor = waiting.pop(0)
            if factor.size > 1 and missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
            elif factor.size > missing and factor.size % missing == 0:
                taken.append(Factor(factor.holds, missing))
                waiting.insert(0, Factor(factor.holds, factor.size // missing))
                missing = 1
            elif factor.size != 1:
                return unknown(shape)
        found.append(tuple(taken))
    return tuple(found)


def _joined(name: str, args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Axes:
    """Return the axes of tensors joined along one that they have, or along a new one."""
    parents = [axes for axes in map(known, args[0]) if axes is not None]
    at = (args[1] if len(args) > 1 else 0) % len(shape)
    if name == "stack":
        parents = [(*axes[:at], (), *axes[at:]) for axes in parents]
    return _together(parents, shape)
