"""The last map at each resolution, before the network makes it smaller: `sites="stage"`.

`auto` takes these where there are no residual branches (VGG, Inception, DenseNet, SqueezeNet).
"""

from __future__ import annotations

from cbam.attach.graph.paths import are_logits, decoding, is_map, makers, trunk
from cbam.attach.graph.probe import Probe
from cbam.attach.sites.location import Found, Location, locate, once


def find_stages(probe: Probe) -> Found:
    """Return the last map at each resolution at which the network convolves, without the head's own maps.

    Of several maps at a resolution it is the last one between blocks, not inside one.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.graph.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())
    >>> [location.name for location in find_stages(run_probe(net, (torch.rand(1, 3, 12, 12),))).locations]
    ['1', '4']
    """
    convolved = {n.shape[2:] for n in probe.nodes if n.operation == "convolution" and is_map(n)}
    decoded, runs_once = decoding(probe), once(probe)
    at: dict[tuple[int, ...], tuple[int, Location]] = {}
    for index in trunk(probe):
        node = probe.nodes[index]
        if (
            not is_map(node)
            or node.shape[2:] not in convolved
            or index in decoded
            or are_logits(probe, index)
        ):
            continue
        location = locate(probe, index, runs_once)
        if location is None:
            continue
        depth = min(c.name.count(".") for c in makers(probe, index) if c.name and runs_once(c))
        before = at.get(node.shape[2:])
        if before is None or depth <= before[0]:
            at[node.shape[2:]] = depth, location
    return Found(list(dict.fromkeys(location for _, location in at.values())), [])
