"""The output of every block: `sites="block"`.

With residual additions a block ends behind the addition and its activation; without them, blocks are the modules with
two convolutions or more that hold no other such module, plain `nn.Sequential`s at one resolution among them.
"""

from __future__ import annotations

from torch import nn

from cbam.attach.graph.probe import Call, Probe
from cbam.attach.graph.scores import scores
from cbam.attach.sites.location import Found, Location, locate
from cbam.attach.sites.residual import find_additions

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(probe: Probe) -> Found:
    """Return the outputs of the blocks.

    Args:
        probe: of a forward with one image.
    """
    every = [call for call in probe.calls if call.name and call.output is not None]
    every = [call for call in every if probe.nodes[call.output or 0].is_map]
    calls = [call for call in every if type(probe.modules[call.name]) not in _CONTAINERS]
    found: list[Call] = []
    for node in find_additions(probe):
        around = [
            c for c in calls if c.source is not None and c.output is not None and c.source < node <= c.output
        ]
        found += sorted(around, key=_size)[:1]
    if not found:
        found = _with_several_convolutions(probe, calls, every)
    return Found(list(dict.fromkeys(Location(call.name, "output") for call in found)), [])


def _with_several_convolutions(probe: Probe, calls: list[Call], every: list[Call]) -> list[Call]:
    """Return the innermost modules with two convolutions; a plain sequence counts where no other module does."""
    predicted = scores(probe)
    ends = (
        locate(probe, i, lambda call: True)
        for i, n in enumerate(probe.nodes)
        if n.operation == "convolution" and i not in predicted
    )
    convolutions = [location.name for location in ends if location is not None]
    several = [call for call in calls if _inside(call.name, convolutions) > 1]
    names = [call.name for call in several]
    found = [call for call in several if _inside(call.name, names) == 0 and call.output not in predicted]
    sequences = [
        call
        for call in every
        if type(probe.modules[call.name]) is nn.Sequential
        and _inside(call.name, convolutions) > 1
        and _inside(call.name, names) == 0
        and not any(call.name.startswith(f"{name}.") for name in names)
        and _at_one_resolution(probe, call)
        and call.output not in predicted
    ]
    names = [call.name for call in sequences]
    found += [call for call in sequences if _inside(call.name, names) == 0]
    return sorted(found, key=lambda call: call.output or 0)


def _at_one_resolution(probe: Probe, call: Call) -> bool:
    nodes = probe.nodes[(call.source or 0) + 1 : (call.output or 0) + 1]
    return len({node.shape[2:] for node in nodes if node.operation == "convolution"}) == 1


def _inside(name: str, others: list[str]) -> int:
    return sum(other.startswith(name + ".") for other in others)


def _size(call: Call) -> int:
    """Return how many nodes a call spans."""
    return 0 if call.source is None or call.output is None else call.output - call.source
