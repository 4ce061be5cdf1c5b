"""The squeeze-excitations of a network, whoever wrote them: what `attach(replace="se")` puts attention in the place of.

Such a module returns its input times a gate of one number for each channel, which layers on the averaged input make. It
is found by what it computes, not by the name of its class.
"""

from __future__ import annotations

from cbam.attach.graph.paths import ancestors
from cbam.attach.graph.probe import Call, Node, Probe

_POOLS = ("mean", "sum", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
_OTHER_POOLS = ("adaptive_max", "amax", "max")  # CBAM's channel gate has both
_SHAPES = ("expand", "view", "unsqueeze", "_unsafe_view", "clone")


def find_squeezes(probe: Probe) -> list[str]:
    """Return the names of the squeeze-excitations in the order of the forward pass.

    Args:
        probe: of a forward with one image.

    >>> import torch
    >>> from cbam import SqueezeExcitation
    >>> from cbam.attach.graph.probe import run_probe
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), SqueezeExcitation(8), nn.ReLU())
    >>> find_squeezes(run_probe(net, (torch.rand(1, 3, 8, 8),)))
    ['1']
    """
    at: dict[int, str] = {}  # of modules that return one tensor the innermost, which ends first
    for call in probe.calls:
        if call.name and call.output is not None and _squeezes(probe, call):
            at.setdefault(call.output, call.name)
    return list(dict.fromkeys(at.values()))


def _squeezes(probe: Probe, call: Call) -> bool:
    if call.source is None or call.output is None:
        return False
    nodes = probe.nodes
    source, output = nodes[call.source], nodes[call.output]
    if output.operation != "mul" or len(source.shape) != 4 or source.shape != output.shape:
        return False
    gates = [parent for parent in output.parents if parent != call.source]
    if len(gates) != 1 or call.source not in output.parents:
        return False
    gate = gates[0]
    while nodes[gate].operation in _SHAPES and len(nodes[gate].parents) == 1:
        gate = nodes[gate].parents[0]
    inside = [nodes[i] for i in ancestors(probe, gate) - ancestors(probe, call.source)]
    layers = [node for node in inside if node.weighted]
    of_each_channel = _is_vector(nodes[gate]) and nodes[gate].shape[1] == source.shape[1]
    return (
        of_each_channel
        and bool(layers)
        and all(_is_vector(node) for node in layers)
        and any(node.operation in _POOLS for node in inside)
        and not any(node.operation.lstrip("_").startswith(_OTHER_POOLS) for node in inside)
    )


def _is_vector(node: Node) -> bool:
    """Return whether a tensor has one position: (N, C) or (N, C, 1, 1)."""
    return len(node.shape) == 2 or (len(node.shape) == 4 and node.shape[2:] == (1, 1))
