"""Maps of scores: what a network predicts for every position, such as the logits of a segmentation (N, classes, H, W).

They come from a convolution, and up to the output nothing follows but resampling, joining and functions such as sigmoid
or softmax. A map behind a norm or an activation holds features, also where the network ends with it. A residual block
at the very end makes scores in a decoder, features elsewhere.
"""

from __future__ import annotations

from cbam.attach.graph.levels import find_levels
from cbam.attach.graph.probe import Node, Probe

_OF_FEATURES = ("norm", "relu", "elu", "silu", "mish", "hardtanh", "hardswish", "swish")


def scores(probe: Probe) -> set[int]:
    """Return the nodes that hold scores, from the convolution that makes them on.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.graph.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Upsample(scale_factor=2))
    >>> probe = run_probe(net, (torch.rand(1, 3, 8, 8),))
    >>> [probe.nodes[index].operation for index in sorted(scores(probe))]
    ['convolution', 'upsample_nearest2d']
    """
    nodes = probe.nodes
    last = [False] * len(nodes)  # nothing with weights follows, and no features
    for index in reversed(range(len(nodes))):
        followers = [(nodes[c], last[c]) for c in nodes[index].consumers]
        last[index] = all(
            is_last and not node.weighted and not _features(node) for node, is_last in followers
        )
    found: set[int] = set()
    decoder: set[int] | None = None
    for index, node in enumerate(nodes):
        if not last[index] or _features(node):
            continue
        joined = [
            p in found for p in node.parents if nodes[p].parents
        ]  # images too: a network that corrects them
        made = node.operation == "convolution" and node.is_map
        if (
            not made and any(joined) and not all(joined) and node.operation == "add"
        ):  # the end of a residual block
            decoder = _decoder(probe) if decoder is None else decoder
            made = index in decoder
        if made or (joined and all(joined)):
            found.add(index)
    return found


def _decoder(probe: Probe) -> set[int]:
    return {index for level in find_levels(probe) if level.behind_enlargement for index in level.maps}


def _features(node: Node) -> bool:
    return any(name in node.operation for name in _OF_FEATURES)
