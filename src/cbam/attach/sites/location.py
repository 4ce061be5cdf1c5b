"""A location for attention, and what a finder returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cbam.attach.graph.probe import Call


class Location(NamedTuple):
    """Where attention goes: after a module ("output"), or before it ("input") where it only returns its input."""

    name: str
    position: str


class Found(NamedTuple):
    """What a finder found, in the order of the forward pass, and what the user should know about it."""

    locations: list[Location]
    notes: list[str]


def innermost(makers: Iterable[Call]) -> Location | None:
    """Return the location at a tensor, given the calls that returned it in the order in which they ended."""
    named = [call for call in makers if call.name]
    for call in named:
        if call.source != call.output:
            return Location(call.name, "output")
    # Identity, DropPath, StochasticDepth: attention goes in front, where it sees every sample
    return Location(named[0].name, "input") if named else None
