"""Find the end of every residual branch in what a probe saw.

A residual addition adds two maps of the same shape that both come from one earlier tensor. Of the two ways from
there, the one with more convolutions is the branch; the other is the shortcut, with none (identity) or one
(projection). The site is the module that made the branch's last tensor, before the addition, as in the paper's
Figure 3.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cbam.attach.graph.paths import makers
from cbam.attach.graph.probe import Probe
from cbam.attach.sites.location import Found, Location, innermost


@dataclass(frozen=True)
class _Addition:
    node: int
    branch: int  # the operand that the branch ends with
    origin: int  # where branch and shortcut part
    inside: int  # bit set of the nodes on the branch
    channels: int


def find_branch_ends(probe: Probe) -> Found:
    """Return the end of every residual branch, and a note for each branch left out.

    Args:
        probe: of a forward with one image.
    """
    ends: list[Location] = []
    left_out: list[str] = []
    counts = Counter(call.name for call in probe.calls)
    additions = _residual_additions(probe)
    for addition in _innermost_blocks(additions):
        end = _locate(probe, addition)
        if end is None:
            left_out.append(
                f"a branch of {addition.channels} channels ends in an operation outside any module:"
                " make that a module, or name a site"
            )
        elif end not in ends:
            ends.append(end)
    times = Counter(_locate(probe, addition) for addition in additions)
    for end in list(ends):
        uses = times[end]
        if counts[end.name] > uses:
            ends.remove(end)
            left_out.append(
                f"{end.name} runs {counts[end.name]} times, but ends a residual branch {uses} times:"
                " give each branch a module of its own, or name another site"
            )
    return Found(ends, left_out)


def find_additions(probe: Probe) -> list[int]:
    """Return the nodes of the residual additions, one for each block.

    Args:
        probe: of a forward with one image.
    """
    return [addition.node for addition in _innermost_blocks(_residual_additions(probe))]


def _residual_additions(probe: Probe) -> list[_Addition]:
    nodes = probe.nodes
    ancestors: list[int] = []  # as bit sets, each node its own ancestor
    weighted = 0
    for index, node in enumerate(nodes):
        bits = 1 << index
        for parent in node.parents:
            bits |= ancestors[parent]
        ancestors.append(bits)
        weighted |= int(node.weighted) << index
    found = []
    for index, node in enumerate(nodes):
        if node.operation != "add" or len(node.parents) != 2 or len(node.shape) != 4:
            continue
        first, second = node.parents
        if nodes[first].shape != nodes[second].shape:
            continue
        common = ancestors[first] & ancestors[second]
        if not common:
            continue
        origin = common.bit_length() - 1
        ways = {p: ancestors[p] & ~ancestors[origin] for p in node.parents}
        weights = {p: (way & weighted).bit_count() for p, way in ways.items()}
        branch, shortcut = (first, second) if weights[first] > weights[second] else (second, first)
        if weights[branch] > weights[shortcut] <= 1 and _convolves(probe, ways[branch]):
            found.append(_Addition(index, branch, origin, ways[branch], node.shape[1]))
    return found


def _convolves(probe: Probe, way: int) -> bool:
    # Transformer blocks add maps too, some of them in (N, H, W, C): a branch without a convolution is none of ours.
    return any(node.operation == "convolution" and way >> i & 1 for i, node in enumerate(probe.nodes))


def _innermost_blocks(additions: list[_Addition]) -> list[_Addition]:
    """Keep one level where additions are nested: the blocks, not their inner parts nor a skip over all blocks.

    An inner addition with fewer channels is a part of its block (Res2Net's splits); one with as many is itself a
    block inside a long skip (super-resolution networks).
    """
    dropped: set[int] = set()
    for outer in additions:
        inner = [a for a in additions if outer.inside >> a.node & 1]
        parts = [a for a in inner if a.channels < outer.channels]
        dropped.update(a.node for a in parts)
        if len(parts) < len(inner):
            dropped.add(outer.node)
    return [a for a in additions if a.node not in dropped]


def _locate(probe: Probe, addition: _Addition) -> Location | None:
    """Return the module at the end of the branch, walking back over bare element-wise steps such as a layer scale."""
    node, consumer = addition.branch, addition.node
    shape = probe.nodes[node].shape
    while probe.nodes[node].consumers == {consumer} and addition.inside >> node & 1:
        end = innermost(makers(probe, node))
        if end is not None:
            return end
        parents = probe.nodes[node].parents
        if len(parents) != 1 or probe.nodes[parents[0]].shape != shape or probe.nodes[node].weighted:
            return None
        node, consumer = parents[0], node
    return None
