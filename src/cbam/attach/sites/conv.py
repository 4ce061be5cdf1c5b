"""Behind every convolution with its norm and activation, as in the paper's MobileNet: `sites="conv"`."""

from __future__ import annotations

from cbam.attach.graph.paths import are_logits, are_predictions, decoding, followers, is_map
from cbam.attach.graph.probe import Probe
from cbam.attach.graph.scores import scores
from cbam.attach.sites.location import Found, Location, locate, once


def find_convolutions(probe: Probe) -> Found:
    """Return the locations behind every convolution on a map, its norm and its activation.

    Where a module runs several times, as a block's only ReLU does, it is the module around it that returns the same
    tensor, or else the one before it.

    Args:
        probe: of a forward with one image.
    """
    decoded, predicted, runs_once = decoding(probe), scores(probe), once(probe)
    found: dict[Location, None] = {}
    for index, node in enumerate(probe.nodes):
        location, end = None, index
        while end >= 0 and node.operation == "convolution" and is_map(node) and index not in decoded:
            location = locate(probe, end, runs_once) or location
            end = _only_follower(probe, end)
        if location is None or index in predicted or are_logits(probe, index):
            continue
        if are_predictions(probe, index, decoded):
            continue
        found[location] = None
    return Found(list(found), [])


def _only_follower(probe: Probe, index: int) -> int:
    """Return the norm or activation that alone reads a tensor and returns one of its shape; -1 for none."""
    node = probe.nodes[index]
    readers = followers(probe, index)
    if len(readers) != 1:
        return -1
    (reader,) = readers
    follower = probe.nodes[reader]
    same = follower.shape == node.shape and len(follower.parents) == 1
    return reader if same and not follower.weighted else -1
