"""How the tensors of a recorded forward hang together: what leads where, and which module's call ends with what."""

from __future__ import annotations

from cbam.attach.graph.probe import Call, Node, Probe


def is_map(node: Node) -> bool:
    """Return whether a node is a feature map with more than one position."""
    return len(node.shape) == 4 and node.shape[2] * node.shape[3] > 1


def makers(probe: Probe, node: int) -> list[Call]:
    """Return the calls that returned a tensor, in the order in which they ended: the innermost first."""
    return [call for call in probe.calls if call.output == node]


def ancestors(probe: Probe, node: int) -> set[int]:
    """Return the nodes that lead to a node, itself included."""
    found, waiting = {node}, [node]
    while waiting:
        for parent in probe.nodes[waiting.pop()].parents:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def trunk(probe: Probe, end: int | None = None) -> list[int]:
    """Return the nodes that every path from the input to `end` goes through, in order; without it, to the output."""
    ends = [call.output for call in probe.calls if call.output is not None] if end is None else [end]
    leading = ancestors(probe, max(ends)) if ends else set()
    furthest, found = 0, []
    for index in sorted(leading):
        if index >= furthest:  # no edge of the graph goes around it
            found.append(index)
        furthest = max([furthest, *(c for c in probe.nodes[index].consumers if c in leading)])
    return found


def are_logits(probe: Probe, index: int) -> bool:
    """Return whether a map holds the class scores: nothing between it and the output has weights."""
    waiting = [index]
    while waiting:
        for follower in probe.nodes[waiting.pop()].consumers:
            if probe.nodes[follower].weighted:
                return False
            waiting.append(follower)
    last = probe.nodes[-1].shape
    return len(last) == 2 and last[-1] == probe.nodes[index].shape[1]
