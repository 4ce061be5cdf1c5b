"""The levels of a network: the way of its map from resolution to resolution, such as 64, 32, 16 and back to 32, 64.

A map belongs to the level that its longest way from the input leads to, in convolutions. So a decoder's maps
are on other levels than those of the encoder at the same resolution, which only join them by skip connections. What
becomes another size for a gate, a pyramid of pooled context or a matrix of attention scores stays on its level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from cbam.attach.graph.paths import carries_features, followers, is_map
from cbam.attach.graph.probe import Node, Probe

Way: TypeAlias = "tuple[tuple[int, ...], ...]"

_RESHAPES = ("clone", "expand", "permute", "reshape", "transpose", "view")
_RESAMPLES = ("convolution", "pool", "upsample")
_PRODUCTS = ("baddbmm", "bmm", "mm")
_GATE = "mul"


@dataclass
class Level:
    """The part of a network between two changes of resolution.

    Args:
        way: the sizes of the map from the input to here, the last one that of the level.
        nodes: on the level, in order.
        maps: those of them that are its maps.
        begins: the nodes whose parents are on the level before.
    """

    way: Way
    nodes: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)

    @property
    def behind_enlargement(self) -> bool:
        """Whether the map became larger somewhere on its way: in a decoder, or a detector's neck."""
        return any(small < large for small, large in zip(self.way, self.way[1:], strict=False))


def find_levels(probe: Probe) -> list[Level]:
    """Return the levels in the order of the forward pass, without those that only make a gate.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.graph.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU())
    >>> [level.way[-1] for level in find_levels(run_probe(net, (torch.rand(1, 3, 8, 8),)))]
    [(8, 8), (4, 4), (8, 8)]
    """
    nodes = probe.nodes
    continued = _continued(probe)
    ways = _ways(probe, continued)
    part = list(range(len(nodes)))  # two maps of one way are on one level where they meet

    def first(index: int) -> int:
        while part[index] != index:
            part[index] = part[part[index]]
            index = part[index]
        return index

    for index, node in enumerate(nodes):
        for parent in node.parents:
            if ways[parent] == ways[index]:
                low, high = sorted((first(parent), first(index)))
                part[high] = low
    found: dict[int, Level] = {}
    for index, node in enumerate(nodes):
        level = found.setdefault(first(index), Level(ways[index]))
        level.nodes.append(index)
        if is_map(node) and level.way and node.shape[2:] == level.way[-1]:
            level.maps.append(index)
            if not node.parents or any(ways[parent] == level.way[:-1] for parent in node.parents):
                level.begins.append(index)
    features = _features(probe, continued)
    return [level for level in found.values() if not features.isdisjoint(level.maps)]


def _continued(probe: Probe) -> list[int | None]:
    """Return for each tensor the one that it continues: that with the longest way, behind a gate the shortest."""
    depths: list[int] = []
    found: list[int | None] = []
    for index, node in enumerate(probe.nodes):
        depths.append(max((depths[p] for p in node.parents), default=0) + node.weighted)
        parents = [p for p in node.parents if carries_features(probe, p, index)] or list(node.parents)
        maps = [p for p in parents if is_map(probe.nodes[p])]
        if (
            node.operation in _PRODUCTS or "attention" in node.operation
        ):  # of attention scores: the queries go on
            found.append(parents[0] if parents else None)
        elif len(maps) > 1 and node.operation == _GATE:
            found.append(min(maps, key=lambda p: depths[p]))
        else:
            found.append(max(maps or parents, key=lambda p: depths[p], default=None))
    return found


def _attends(node: Node) -> bool:
    return node.operation in _PRODUCTS or "attention" in node.operation


def _ways(probe: Probe, continued: list[int | None]) -> list[Way]:
    convolved = {n.shape[2:] for n in probe.nodes if n.operation == "convolution" and is_map(n)}
    found: list[Way] = []
    beside: list[bool] = []  # maps of pooled context
    for node, before in zip(probe.nodes, continued, strict=True):
        last = found[before][-1:] if before is not None else ()
        same = node.shape[2:] in last
        beside.append(not same and ("adaptive" in node.operation or (before is not None and beside[before])))
        if before is None or not last:
            found.append((node.shape[2:],) if is_map(node) else ())
        elif (
            not beside[-1]
            and node.shape[2:] in convolved
            and _another_size(probe.nodes[before], last[0], node)
        ):
            found.append((*found[before], node.shape[2:]))
        else:
            found.append(found[before])
    return found


def _another_size(before: Node, size: tuple[int, ...], node: Node) -> bool:
    """Return whether a tensor is a map of another size than its level, and not a matrix of attention scores."""
    if not is_map(node) or not is_map(before) or node.shape[2:] == size:
        return False
    if any(name in node.operation for name in _RESAMPLES):
        return True  # also behind padding, or where tokens became a map
    return before.shape[2:] == size and set(node.operation.split("_")).isdisjoint(_RESHAPES)


def _features(probe: Probe, continued: list[int | None]) -> set[int]:
    """Return what becomes the output, and not only a gate on the way there."""
    nodes = probe.nodes
    found = {i for i, node in enumerate(nodes) if node.parents and not followers(probe, i)}
    found -= {
        i for i in found for p in nodes[i].parents if i not in followers(probe, p)
    }  # a norm's statistics
    waiting = list(found)
    while waiting:
        index = waiting.pop()
        beside = nodes[index].operation == _GATE or _attends(nodes[index])
        only = continued[index] if beside else None
        for parent in nodes[index].parents if only is None else (only,):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found
