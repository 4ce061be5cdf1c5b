"""A location for attention, what a finder returns, and which of the modules that returned a tensor is the location.

Often several modules return the very same tensor: an activation, and the block that ends with it. Attention goes to the
innermost of them, so that it sits where the paper has it and its keys stay short. Two kinds of modules cannot be it.
One that also runs elsewhere, such as one activation object in all blocks, as in YOLO: the next module outwards that
does not, is. And one that a tool folds away: a batch norm inside a block that has `fuse()` or `switch_to_deploy()`.
That block is the location then, if it returns the same tensor, and the attention outlives the folding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cbam.attach.folding import folds
from cbam.attach.graph.paths import makers
from cbam.attach.graph.probe import Call, Probe


class Location(NamedTuple):
    """Where attention goes: after a module ("output"), or before it ("input") where it only returns its input."""

    name: str
    position: str


class Found(NamedTuple):
    """What a finder found, in the order of the forward pass, and what the user should know about it."""

    locations: list[Location]
    notes: list[str]


def locate(probe: Probe, node: int, usable: Callable[[Call], bool]) -> Location | None:
    """Return the location at a tensor; None where no module returned it that can be one.

    Args:
        probe: of a forward with one image.
        node: the tensor.
        usable: whether attention at the module of this call would be at this tensor only.
    """
    calls = [call for call in makers(probe, node) if call.name and usable(call)]
    changing = [call for call in calls if call.source != call.output]
    if changing:
        foldable = (call for call in changing if folds(probe.modules[call.name]))
        return Location(next(foldable, changing[0]).name, "output")
    # Identity, DropPath, StochasticDepth: attention goes in front, where it sees every sample
    return Location(calls[0].name, "input") if calls else None


def once(probe: Probe) -> Callable[[Call], bool]:
    """Return the predicate that is true for calls of modules that run once."""
    return lambda call: probe.runs[call.name] == 1
