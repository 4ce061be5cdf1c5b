"""How the tensors of a recorded forward hang together: what leads where, and which module's call ends with what."""

from __future__ import annotations

from math import prod

from cbam.attach.graph.probe import Call, Node, Probe

_PROBABILITIES = ("sigmoid", "softmax", "_softmax")


def is_map(node: Node) -> bool:
    """Return whether a node is a feature map (N, C, ...) with more than one position."""
    return node.is_map and prod(node.shape[2:]) > 1


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
    """Return whether a map holds scores: nothing behind it has weights, and it becomes the output or probabilities."""
    waiting = [index]
    while waiting:
        for follower in probe.nodes[waiting.pop()].consumers:
            if probe.nodes[follower].weighted:
                return False
            waiting.append(follower)
    last, consumers = probe.nodes[-1].shape, probe.nodes[index].consumers
    if len(consumers) == 1 and probe.nodes[min(consumers)].operation in _PROBABILITIES:
        return True
    return len(last) == 2 and last[-1] == probe.nodes[index].shape[1]


def are_predictions(probe: Probe, index: int, decoded: set[int]) -> bool:
    """Return whether a map holds a detector's scores or boxes: it only becomes boxes, or positions to read others at.

    Args:
        probe: of a forward with one image.
        index: of the map.
        decoded: what turns predictions into boxes, see `decoding`.
    """
    nodes, behind = probe.nodes, descendants(probe, index)
    if any(nodes[i].weighted and i not in decoded for i in behind if i != index):
        return False
    positions = (i for i in behind for reader in nodes[i].consumers if not carries_features(probe, i, reader))
    return not behind.isdisjoint(decoded) or next(positions, None) is not None


def carries_features(probe: Probe, index: int, follower: int) -> bool:
    """Return whether features go this way, and not only the positions at which a map is read."""
    reader = probe.nodes[follower]
    positions = len(probe.nodes[index].shape) <= 2 and len(reader.shape) == 4  # proposals, or indices
    return not (positions and any(len(probe.nodes[parent].shape) == 4 for parent in reader.parents))


def decoding(probe: Probe) -> set[int]:
    """Return the nodes that turn a detector's predictions into boxes.

    They begin where the predictions of maps of different sizes are joined into one list. What follows has no matrix
    product, as a transformer's would, but may have convolutions, such as YOLO's expectation over distances.
    """
    nodes = probe.nodes
    sizes: list[
        frozenset[tuple[int, ...]]
    ] = []  # of the maps that a tensor was last convolved on; () for others
    begins = []
    for index, node in enumerate(nodes):
        if node.weighted or not node.parents:
            sizes.append(frozenset([node.shape[2:] if node.operation == "convolution" else ()]))
            continue
        sizes.append(frozenset().union(*(sizes[parent] for parent in node.parents)))
        joins = node.operation == "cat" and len(node.shape) <= 3 and not _is_signal(probe, index)
        if joins and len(sizes[index]) > 1 and () not in sizes[index]:
            begins.append(index)
    found: set[int] = set()
    for index in begins:
        behind = descendants(probe, index)
        if not any(nodes[i].weighted and nodes[i].operation != "convolution" for i in behind):
            found |= behind
    return found


def only_embeds(probe: Probe, name: str) -> bool:
    """Return whether a module's map is the network's only one: it embeds patches, and what follows are tokens.

    Args:
        probe: of a forward with one image.
        name: of the module.
    """
    nodes = probe.nodes
    made = next((call.output for call in probe.calls if call.name == name), None)
    if made is None or sum(nodes[i].operation == "convolution" for i in ancestors(probe, made)) != 1:
        return False
    behind = (nodes[i] for i in descendants(probe, made))
    return any(node.channel_axis == len(node.shape) - 1 > 1 for node in behind)


def _is_signal(probe: Probe, index: int) -> bool:
    """Return whether joined tensors are maps (N, C, L) joined along their channels, as in a U-Net."""
    node = probe.nodes[index]
    return node.dims == 1 and all(probe.nodes[parent].shape[2:] == node.shape[2:] for parent in node.parents)


def descendants(probe: Probe, node: int) -> set[int]:
    """Return the nodes to which a node's features lead, itself included."""
    found, waiting = {node}, [node]
    while waiting:
        index = waiting.pop()
        for follower in probe.nodes[index].consumers - found:
            if carries_features(probe, index, follower):
                found.add(follower)
                waiting.append(follower)
    return found
