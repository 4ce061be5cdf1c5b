"""The end of every residual branch, before the addition, as in the paper's Figure 3: `sites="residual"`.

A residual addition adds two maps of the same shape that both come from one earlier tensor. Of the two paths from
there, the one with more convolutions is the branch; the other is the shortcut, with none (identity) or one
(projection). The site is the module that made the branch's last tensor.

RepVGG and its relatives add linear branches that are one convolution after `switch_to_deploy()`: that is no residual
block, and what sits on a branch would be gone. There the site is behind the module that folds them, or nowhere if that
module goes on with other convolutions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cbam.attach.folding import folds
from cbam.attach.graph.paths import ancestors, is_map, makers
from cbam.attach.graph.probe import Call, Probe
from cbam.attach.sites.location import Found, Location, locate
from cbam.formatting import counted

_LINEAR = (
    "convolution", "batch_norm", "add", "sub", "mul", "div", "pad", "avg_pool", "view", "reshape", "clone", "detach"
)  # fmt: skip


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
    ends: dict[Location, None] = {}
    left_out: dict[str, None] = {}
    merged: dict[str, None] = {}
    additions = _residual_additions(probe)
    folded = {a.node: calls for a in additions if (calls := _folding(probe, a))}
    behind = {a.node: _behind_folded(probe, a, folded[a.node]) for a in additions if a.node in folded}
    at = {a.node: _end(probe, a) for a in additions if behind.get(a.node, "") is not None}
    uses = Counter(name for end in at.values() for name in {call.name for call in makers(probe, end)})
    for addition in _innermost_blocks(additions):
        if addition.node not in at:
            merged[folded[addition.node][0].name] = None
            continue
        end = at[addition.node]
        location = locate(probe, end, lambda call: probe.runs[call.name] == uses[call.name])
        if location is not None:
            ends[behind.get(addition.node) or location] = None
            continue
        first = next((call.name for call in makers(probe, end) if call.name), None)
        if first is None:
            left_out[
                f"a branch of {addition.channels} channels ends in an operation outside any module:"
                " make that a module, or name a site"
            ] = None
        else:
            left_out[
                f"{first} runs {probe.runs[first]} times, but ends a residual branch {counted(uses[first], 'time')}:"
                " give each branch a module of its own, or name another site"
            ] = None
    if merged:
        several = f" and {counted(len(merged) - 1, 'more module')}" if len(merged) > 1 else ""
        left_out[
            f"{next(iter(merged))}{several} can fold linear branches into one convolution:"
            " what is on them would be lost"
        ] = None
    return Found(list(ends), list(left_out))


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
        if node.operation != "add" or len(node.parents) != 2 or not node.is_map:
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
        is_block = weights[branch] > weights[shortcut] <= 1 and _convolves(probe, ways[branch])
        if is_block and not (weights[shortcut] and _comes_from_above(probe, branch, ways[branch])):
            found.append(_Addition(index, branch, origin, ways[branch], node.shape[1]))
    return found


def _convolves(probe: Probe, way: int) -> bool:
    # Transformer blocks add maps too, some of them in (N, H, W, C): a branch without a convolution is none of ours.
    return any(node.operation == "convolution" and way >> i & 1 for i, node in enumerate(probe.nodes))


def _comes_from_above(probe: Probe, branch: int, inside: int) -> bool:
    """Return whether the last change of size on a branch makes the map larger, as in the sums of a feature pyramid.

    There a coarser map, enlarged, is added to the finer one's lateral convolution. The stages between the two look like
    a branch, whose blocks would be its parts.
    """
    index = branch
    while inside >> index & 1 and len(probe.nodes[index].parents) == 1:
        (before,) = probe.nodes[index].parents
        size, earlier = probe.nodes[index].shape[2:], probe.nodes[before].shape[2:]
        if size != earlier:
            return len(earlier) == len(size) and earlier < size
        index = before
    return False


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


def _end(probe: Probe, addition: _Addition) -> int:
    """Return the last tensor of the branch that a module made; -1 for none.

    It is the branch's end, or before bare element-wise steps such as a layer scale.
    """
    node, consumer = addition.branch, addition.node
    shape = probe.nodes[node].shape
    while probe.nodes[node].consumers == {consumer} and addition.inside >> node & 1:
        if any(call.name for call in makers(probe, node)):
            return node
        here = probe.nodes[node]
        if len(here.parents) != 1 or probe.nodes[here.parents[0]].shape != shape or here.weighted:
            break
        node, consumer = here.parents[0], node
    return -1


def _folding(probe: Probe, addition: _Addition) -> list[Call]:
    """Return the calls of modules that can fold both paths of an addition into one convolution, the innermost first."""
    if not _is_linear(probe, addition.origin, addition.node):
        return []
    makers_of_branch = [call.name for call in makers(probe, addition.branch)]

    def holds(call: Call) -> bool:
        if call.source is None or call.source > addition.origin:
            return False
        if call.output is None:  # the module returns several tensors
            return any(name.startswith(f"{call.name}.") for name in makers_of_branch)
        return call.output >= addition.node

    # of modules inside each other the innermost ended first
    return [c for c in probe.calls if c.name and folds(probe.modules[c.name]) and holds(c)]


def _behind_folded(probe: Probe, addition: _Addition, calls: list[Call]) -> Location | None:
    """Return the location behind the module that folds both paths of an addition, if any."""
    found: Call | None = None
    for call in calls:
        if call.source is None or call.output is None:
            continue
        whole = found is not None and _is_linear(probe, call.source, call.output)
        if whole or (found is None and _folds_here(probe, addition, call)):
            found = call
    if found is None or probe.runs[found.name] > 1 or not probe.nodes[found.output or 0].is_map:
        return None
    return Location(found.name, "output")


def _folds_here(probe: Probe, addition: _Addition, call: Call) -> bool:
    """Return whether what follows an addition in a call is more branches to merge, or has no convolution."""
    if call.source is None or call.output is None:
        return False
    if probe.nodes[call.output].shape[2:] != probe.nodes[addition.node].shape[2:]:
        return False
    tiny = not is_map(probe.nodes[addition.node])  # squeeze-excitation's convolutions look like others then
    rest = ancestors(probe, call.output) - ancestors(probe, addition.node)
    convolutions = (i for i in rest if probe.nodes[i].weighted and (tiny or is_map(probe.nodes[i])))
    return all(_is_linear(probe, call.source, index) for index in convolutions)


def _is_linear(probe: Probe, start: int, end: int) -> bool:
    """Return whether a tensor is a linear function of an earlier one, but for a constant."""
    nodes = [probe.nodes[index] for index in ancestors(probe, end) - ancestors(probe, start)]
    products = ("mul", "div")
    return all(
        any(name in node.operation for name in _LINEAR)
        and not (len(node.parents) > 1 and node.operation in products)
        for node in nodes
    )
