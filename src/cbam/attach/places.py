"""Places for attention other than the end of a residual branch, found in what a probe saw.

- stages: the last map at each resolution, before the network makes it smaller; `auto` takes them where there are no
  residual branches (VGG, Inception, DenseNet, SqueezeNet);
- blocks: the output of every residual block, behind the addition and its activation; without residual branches, of
  every module with two convolutions or more that holds no other such module;
- convolutions: behind every convolution with its norm and activation, as in the paper's MobileNet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cbam.attach.probe import Call, Node, Probe


@dataclass(frozen=True)
class Place:
    """Where attention goes: after module `name` ("output"), or before it ("input") where it only hands its input on."""

    name: str
    position: str


def innermost(makers: Iterable[Call]) -> Place | None:
    """Return the place at a tensor, given the calls that returned it in the order in which they ended."""
    named = [call for call in makers if call.name]
    for call in named:
        if call.source != call.output:
            return Place(call.name, "output")
    # Identity, DropPath, StochasticDepth: attention goes in front, where it sees every sample
    return Place(named[0].name, "input") if named else None


def find_stages(probe: Probe) -> list[Place]:
    """Return the last map at each resolution at which the network convolves, the head's own maps left out.

    Of several maps at a resolution it is the last one between blocks, not inside one.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())
    >>> [place.name for place in find_stages(run_probe(net, (torch.rand(1, 3, 12, 12),)))]
    ['1', '4']
    """
    runs = Counter(call.name for call in probe.calls)
    convolved = {n.shape[2:] for n in probe.nodes if n.operation == "convolution" and is_map(n)}
    at: dict[tuple[int, ...], tuple[int, Place]] = {}
    for index in trunk(probe):
        node, makers = probe.nodes[index], [c for c in _makers(probe, index) if runs[c.name] == 1]
        place = innermost(makers)
        if place is None or not is_map(node) or node.shape[2:] not in convolved or _are_logits(probe, index):
            continue
        depth = min(call.name.count(".") for call in makers if call.name)
        before = at.get(node.shape[2:])
        if before is None or depth <= before[0]:
            at[node.shape[2:]] = depth, place
    return list(dict.fromkeys(place for _, place in at.values()))


def find_blocks(probe: Probe, additions: Iterable[int], containers: Iterable[str]) -> list[Place]:
    """Return the outputs of the blocks.

    Args:
        probe: of a forward with one image.
        additions: the nodes of the residual additions.
        containers: names of modules that only hold others, such as nn.Sequential.
    """
    held = set(containers)
    calls = [call for call in probe.calls if call.name and call.shape is not None and len(call.shape) == 4]
    found: list[Call] = []
    for node in additions:
        around = [
            c for c in calls if c.source is not None and c.output is not None and c.source < node <= c.output
        ]
        around = [c for c in around if c.name not in held]
        found += sorted(around, key=_size)[:1]
    if not found:
        makers = (
            innermost(_makers(probe, i)) for i, n in enumerate(probe.nodes) if n.operation == "convolution"
        )
        convolutions = [place.name for place in makers if place is not None]
        several = [c for c in calls if c.name not in held and _inside(c.name, convolutions) > 1]
        names = [c.name for c in several]
        found = [c for c in several if _inside(c.name, names) == 0]
    return list(dict.fromkeys(Place(call.name, "output") for call in found))


def find_convolutions(probe: Probe) -> list[Place]:
    """Return the places behind every convolution on a map, its norm and its activation.

    A module that runs in several places, as a block's only ReLU does, is no place; the one before it is.
    """
    runs = Counter(call.name for call in probe.calls)
    found: dict[Place, None] = {}
    for index, node in enumerate(probe.nodes):
        place, end = None, index
        while end >= 0 and node.operation == "convolution" and is_map(node):
            here = innermost(_makers(probe, end))
            if here is not None and runs[here.name] == 1:
                place = here
            end = _only_follower(probe, end)
        if place is not None and not _are_logits(probe, index):
            found[place] = None
    return list(found)


def _inside(name: str, others: list[str]) -> int:
    return sum(other.startswith(name + ".") for other in others)


def trunk(probe: Probe, end: int | None = None) -> list[int]:
    """Return the nodes through which everything from the input to `end` goes, in order; without it, to the output."""
    ends = [call.output for call in probe.calls if call.output is not None] if end is None else [end]
    leading = ancestors(probe, max(ends)) if ends else set()
    furthest, found = 0, []
    for index in sorted(leading):
        if index >= furthest:  # no edge of the graph goes around it
            found.append(index)
        furthest = max([furthest, *(c for c in probe.nodes[index].consumers if c in leading)])
    return found


def _are_logits(probe: Probe, index: int) -> bool:
    """Return whether a map holds the classes' scores: from here to the output nothing is weighted."""
    waiting = [index]
    while waiting:
        for follower in probe.nodes[waiting.pop()].consumers:
            if probe.nodes[follower].weighted:
                return False
            waiting.append(follower)
    last = probe.nodes[-1].shape
    return len(last) == 2 and last[-1] == probe.nodes[index].shape[1]


def ancestors(probe: Probe, node: int) -> set[int]:
    """Return the nodes that lead to a node, itself included."""
    found, waiting = {node}, [node]
    while waiting:
        for parent in probe.nodes[waiting.pop()].parents:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def _makers(probe: Probe, node: int) -> list[Call]:
    return [call for call in probe.calls if call.output == node]


def is_map(node: Node) -> bool:
    """Return whether a node is a feature map with more than one position."""
    return len(node.shape) == 4 and node.shape[2] * node.shape[3] > 1


def _size(call: Call) -> int:
    """Return how many nodes a call spans."""
    return 0 if call.source is None or call.output is None else call.output - call.source


def _only_follower(probe: Probe, index: int) -> int:
    """Return the norm or activation that alone reads a tensor and gives one of its shape; -1 for none."""
    node = probe.nodes[index]
    maps = [c for c in node.consumers if probe.nodes[c].shape == node.shape]
    if len(maps) != 1 or len(node.consumers) > len(maps) + _statistics(probe, node):
        return -1
    follower = probe.nodes[maps[0]]
    return maps[0] if len(follower.parents) == 1 and not follower.weighted else -1


def _statistics(probe: Probe, node: Node) -> int:
    """Return how many of a node's followers are a batch norm's other results."""
    return sum(
        "norm" in probe.nodes[c].operation and probe.nodes[c].shape != node.shape for c in node.consumers
    )
