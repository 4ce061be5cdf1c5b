"""Locations right before every classifier of a network: `sites="head"`, as in the paper's detectors.

A prediction is a convolution or matrix product that no other one follows, except in the second stage of a detector,
which reads a map at the positions that the first stage proposes. Predictions from one map are a head: class scores and
boxes at a pyramid level. If only heads read that map, attention goes behind the module that makes it, and all heads see
the same attended map, as in the paper's StairNet. If something else reads it too, such as the next level or the pooling
of regions, that part must not change: attention then goes in front of the first module of each head. For a prediction
from a vector it goes to the last map before pooling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from cbam.attach.graph.paths import ancestors, carries_features, decoding, is_map, trunk
from cbam.attach.graph.probe import Call, Node, Probe
from cbam.attach.sites.location import Found, Location, locate

_NOT_LAST = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "input")


@dataclass(frozen=True)
class _Head:
    maps: tuple[int, ...]  # nodes where attention may go, the best first
    members: int  # bit set of the predictions
    forked: bool  # several predictions part at the map


def find_heads(probe: Probe) -> Found:
    """Return the locations in front of the heads, and notes on what was chosen and what was left out.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.graph.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 5))
    >>> find_heads(run_probe(net, (torch.rand(1, 3, 12, 12),))).locations
    [Location(name='1', position='output')]
    """
    reached = _reached(probe)
    heads = list(_heads(probe, reached))
    shared = {head.maps[0] for head in heads if head.forked}
    after = [_after(probe, head, reached, shared) for head in heads]
    apart = any(location is None for head, location in zip(heads, after, strict=True) if head.forked)
    found: dict[Location, set[int]] = {}
    notes: list[str] = []
    for head, location in zip(heads, after, strict=True):
        if location is not None and not (head.forked and apart):
            found.setdefault(location, set()).add(head.maps[0])
            continue
        before, missing = _before(probe, head, reached, shared)
        for each in before:
            found.setdefault(each, set()).add(head.maps[0])
        if missing:
            size = "x".join(map(str, probe.nodes[head.maps[0]].shape[1:]))
            notes.append(
                f"{missing} heads on the map of {size} have no module of their own in front: name a site"
            )
    if apart:
        notes.append("the heads' maps go on elsewhere too: each head has attention of its own in front")
    notes += [
        f"{location.name} runs on {len(maps)} maps: one attention serves all of them"
        for location, maps in found.items()
        if len(maps) > 1
    ]
    return Found(list(found), notes)


def _reached(probe: Probe) -> list[int]:
    """Return for each node the predictions that it leads to, as a bit set; a prediction leads to itself."""
    nodes, decoded = probe.nodes, decoding(probe)
    weighted = [node.weighted and index not in decoded for index, node in enumerate(nodes)]
    leads, reached = [False] * len(nodes), [0] * len(nodes)
    for index in reversed(range(len(nodes))):
        for follower in nodes[index].consumers:
            if carries_features(probe, index, follower):
                leads[index] |= leads[follower] or weighted[follower]
                reached[index] |= reached[follower]
        if weighted[index] and not leads[index]:
            reached[index] |= 1 << index
    return reached


def _heads(probe: Probe, reached: list[int]) -> Iterator[_Head]:
    """Yield the heads in the order of the forward pass."""
    nodes = probe.nodes
    forks: dict[int, int] = {}
    alone: list[int] = []
    for index, node in enumerate(nodes):
        if node.weighted and reached[index] >> index & 1:
            fork = _fork(nodes, reached, index, 1 << index)
            if fork is None:
                alone.append(index)
            else:
                forks[fork] = forks.get(fork, 0) | 1 << index
    for fork in sorted(forks, reverse=True):  # a head inside a head: two predictions at the end of one tower
        outer = _fork(nodes, reached, fork, forks[fork]) if reached[fork] == forks[fork] else None
        if outer in forks and nodes[outer].shape[2:] == nodes[fork].shape[2:]:  # not the next level
            forks[outer] |= forks.pop(fork)
    ends = [(index, 1 << index) for index in alone] + list(forks.items())
    for index, members in sorted(ends):
        if index in forks and nodes[index].is_map:
            yield _Head((index,), members, forked=True)
        elif maps := _last_maps(probe, index):
            yield _Head(maps, members, forked=False)


def _fork(nodes: list[Node], reached: list[int], index: int, members: int) -> int | None:
    """Return the nearest node on the one way back, at one resolution, that leads to other predictions as well."""
    size: tuple[int, ...] | None = None
    while len(nodes[index].parents) == 1:
        (index,) = nodes[index].parents
        here = nodes[index].shape[2:]
        size = here if size is None else size
        if here != size or not nodes[index].parents:  # another level, or the image itself
            return None
        if reached[index] != members:
            return index
    return None


def _last_maps(probe: Probe, end: int) -> tuple[int, ...]:
    """Return the maps at the last resolution before a vector or a prediction, the last first, without pooled ones.

    None where tokens come between: what a transformer predicts from is no map.
    """
    made = {call.output for call in probe.calls if call.name}  # not a bare step, such as a permuted vector
    maps = [i for i in reversed(trunk(probe, end)) if i < end and i in made and is_map(probe.nodes[i])]
    maps = [i for i in maps if not probe.nodes[i].operation.removeprefix("_").startswith(_NOT_LAST)]
    if not maps or any(_mixes_tokens(probe, maps[0], i) for i in ancestors(probe, end) if i > maps[0]):
        return ()
    return tuple(takewhile(lambda i: probe.nodes[i].shape[2:] == probe.nodes[maps[0]].shape[2:], maps))


def _mixes_tokens(probe: Probe, last_map: int, index: int) -> bool:
    node = probe.nodes[index]
    one_row_a_sample = len(node.shape) == 2 and node.shape[0] == probe.nodes[last_map].shape[0]
    return node.weighted and node.operation != "convolution" and not one_row_a_sample


def _after(probe: Probe, head: _Head, reached: list[int], shared: set[int]) -> Location | None:
    """Return the location behind the module that makes the head's map, if nothing else reads that."""
    for index in head.maps:
        if reached[index] == head.members:
            allowed = shared if head.forked else {index}
            location = locate(probe, index, partial(_only_makes, probe, allowed))
            if location is not None:
                return location
    return None


def _only_makes(probe: Probe, maps: set[int], maker: Call) -> bool:
    """Return whether a module makes no other maps, as a block's only ReLU does."""
    return {call.output for call in probe.calls if call.name == maker.name} <= maps


def _before(probe: Probe, head: _Head, reached: list[int], shared: set[int]) -> tuple[list[Location], int]:
    """Return the locations in front of the modules that read the map, and how many predictions have none."""
    missing, found = head.members, dict[Location, None]()
    readers = [
        call
        for call in probe.calls
        if call.name and call.takes_map and call.source == head.maps[0] and call.output is not None
    ]
    for call in reversed(readers):  # the outermost ends last
        members = reached[call.output or 0]
        sources = {c.source for c in probe.calls if c.name == call.name}
        if members & missing and members & ~head.members == 0 and sources <= shared | {head.maps[0]}:
            found[Location(call.name, "input")] = None
            missing &= ~members
    return list(found)[::-1], missing.bit_count()
