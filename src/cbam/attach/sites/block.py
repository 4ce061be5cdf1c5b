"""The output of every block: `sites="block"`.

With residual additions a block ends behind the addition and its activation; without them, blocks are the modules with
two convolutions or more that hold no other such module.
"""

from __future__ import annotations

from torch import nn

from cbam.attach.graph.probe import Call, Probe
from cbam.attach.sites.location import Found, Location, locate
from cbam.attach.sites.residual import find_additions

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(probe: Probe) -> Found:
    """Return the outputs of the blocks.

    Args:
        probe: of a forward with one image.
    """
    calls = [call for call in probe.calls if call.name and call.output is not None]
    calls = [call for call in calls if probe.nodes[call.output or 0].is_map]
    calls = [call for call in calls if not isinstance(probe.modules[call.name], _CONTAINERS)]
    found: list[Call] = []
    for node in find_additions(probe):
        around = [
            c for c in calls if c.source is not None and c.output is not None and c.source < node <= c.output
        ]
        found += sorted(around, key=_size)[:1]
    if not found:
        ends = (
            locate(probe, i, lambda call: True)
            for i, n in enumerate(probe.nodes)
            if n.operation == "convolution"
        )
        convolutions = [location.name for location in ends if location is not None]
        several = [c for c in calls if _inside(c.name, convolutions) > 1]
        names = [c.name for c in several]
        found = [c for c in several if _inside(c.name, names) == 0]
    return Found(list(dict.fromkeys(Location(call.name, "output") for call in found)), [])


def _inside(name: str, others: list[str]) -> int:
    return sum(other.startswith(name + ".") for other in others)


def _size(call: Call) -> int:
    """Return how many nodes a call spans."""
    return 0 if call.source is None or call.output is None else call.output - call.source
