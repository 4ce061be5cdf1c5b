"""Behind every convolution with its norm and activation, as in the paper's MobileNet: `sites="conv"`."""

from __future__ import annotations

from cbam.attach.graph.paths import are_logits, are_predictions, decoding, is_map
from cbam.attach.graph.probe import Node, Probe
from cbam.attach.sites.location import Found, Location, locate, once


def find_convolutions(probe: Probe) -> Found:
    """Return the locations behind every convolution on a map, its norm and its activation.

    Where a module runs several times, as a block's only ReLU does, it is the module around it that returns the same
    tensor, or else the one before it.

    Args:
        probe: of a forward with one image.
    """
    decoded, runs_once = decoding(probe), once(probe)
    found: dict[Location, None] = {}
    for index, node in enumerate(probe.nodes):
        location, end = None, index
        while end >= 0 and node.operation == "convolution" and is_map(node) and index not in decoded:
            location = locate(probe, end, runs_once) or location
            end = _only_follower(probe, end)
        if location is None or are_logits(probe, index) or are_predictions(probe, index, decoded):
            continue
        found[location] = None
    return Found(list(found), [])


def _only_follower(probe: Probe, index: int) -> int:
    """Return the norm or activation that alone reads a tensor and returns one of its shape; -1 for none."""
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
