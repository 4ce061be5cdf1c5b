"""The last map of every stage: at each resolution on its way, in the encoder and in the decoder: `sites="stage"`.

`auto` takes these where there are no residual branches (VGG, Inception, DenseNet, SqueezeNet, a plain U-Net).
`sites="neck"` are those of them behind an enlargement of the map: a detector's neck, the decoder of a U-Net.
"""

from __future__ import annotations

from cbam.attach.graph.levels import Level, find_levels
from cbam.attach.graph.paths import are_logits, are_predictions, decoding, followers, makers
from cbam.attach.graph.probe import Probe
from cbam.attach.graph.scores import scores
from cbam.attach.sites.location import Found, Location, locate, once


def find_stages(probe: Probe) -> Found:
    """Return the last map of every level on which the network convolves, without the head's own maps.

    Of several maps it is the last one between blocks, not inside one.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from torch import nn
    >>> from cbam.attach.graph.probe import run_probe
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())
    >>> [location.name for location in find_stages(run_probe(net, (torch.rand(1, 3, 12, 12),))).locations]
    ['1', '4']
    """
    return _last_maps(probe, find_levels(probe))


def find_neck(probe: Probe) -> Found:
    """Return the last map of every level behind an enlargement of the map.

    Args:
        probe: of a forward with one image.
    """
    levels = find_levels(probe)
    return _last_maps(probe, levels, [level for level in levels if level.behind_enlargement])


def _last_maps(probe: Probe, levels: list[Level], wanted: list[Level] | None = None) -> Found:
    decoded, predicted, runs_once = decoding(probe), scores(probe), once(probe)

    def holds_features(index: int) -> bool:
        if index in decoded or index in predicted or are_logits(probe, index):
            return False
        return not are_predictions(probe, index, decoded)

    at: dict[Location, int] = {}
    for level in levels if wanted is None else wanted:
        convolutions = [index for index in level.maps if probe.nodes[index].operation == "convolution"]
        if not convolutions:
            continue
        maps = {index for index in level.maps if holds_features(index)}
        for leaving in _ways_out(probe, level, levels):
            shared = [index for index in _passed(probe, level, leaving) if index in maps]
            behind = [index for index in shared if index >= convolutions[0]] or shared
            best: tuple[int, int, Location] | None = None
            for index in behind:
                location = locate(probe, index, runs_once)
                if location is None:
                    continue
                depth = min(c.name.count(".") for c in makers(probe, index) if c.name and runs_once(c))
                if best is None or depth <= best[0]:
                    best = depth, index, location
            if best is not None:
                at.setdefault(best[2], best[1])
    return Found(sorted(at, key=lambda location: at[location]), [])


def _ways_out(probe: Probe, level: Level, levels: list[Level]) -> list[set[int]]:
    """Return for each level that follows the nodes from which it begins; without such, all that the level ends with."""
    here = set(level.nodes)
    begins = []
    for after in levels:
        if len(after.way) == len(level.way) + 1 and after.way[:-1] == level.way:
            sources = {parent for begin in after.begins for parent in probe.nodes[begin].parents}
            begins.append(sources & here)
    statistics = {c for i in here for c in probe.nodes[i].consumers - followers(probe, i)}
    ends = {i for i in here - statistics if not followers(probe, i) & here}
    return [sources for sources in begins if sources] or [ends]


def _passed(probe: Probe, level: Level, leaving: set[int]) -> list[int]:
    """Return the nodes of a level that every path on it to `leaving` goes through, in order."""
    here, leads = set(level.nodes), set(leaving)
    for index in reversed(level.nodes):
        if not probe.nodes[index].consumers.isdisjoint(leads & here):
            leads.add(index)
    furthest, found = max((i for i in level.begins if i in leads), default=-1), []
    beyond = len(probe.nodes)
    for index in level.nodes:
        if index not in leads:
            continue
        if index >= furthest:
            found.append(index)
        furthest = max([furthest, *(c for c in probe.nodes[index].consumers if c in leads)])
        if index in leaving:
            furthest = beyond
    return found
