"""Checks of a network with the attention in it: attach, learn, off and out again, and what its gates show."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cbam.attach import attach, attention_maps, detach, disabled, plan
from cbam.attach.maps import sites_with_gates
from cbam.nn.base import CONVOLUTIONS
from cbam.testing.subject import Subject, expect, not_applicable, same, same_bits

_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Network(nn.Module):
    """A stem, a residual block with a norm at the end of its branch, and a classifier.

    Args:
        channels: of the block.
        dims: how many sizes its maps have.
    """

    def __init__(self, channels: int, dims: int):
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.stem = convolution(3, channels, 3, padding=1)
        self.conv = convolution(channels, channels, 3, padding=1)
        self.norm = _NORMS[dims](channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels, 4)

    def forward(self, image: Tensor) -> Tensor:
        """Return the scores, (N, 4)."""
        x = self.stem(image)
        return self.fc(self.relu(x + self.norm(self.conv(x))).flatten(2).mean(2))


def attached(s: Subject) -> None:
    """A network starts with the same bits where it can, learns every weight, and is itself again after `detach`."""
    model, image = _network(s)
    before, keys, traces = model(image), list(model.state_dict()), _traces(model)
    starts_as_itself = plan(model, s.given, **_where(s)).init == "identity"
    _attach(model, s, init="identity" if starts_as_itself else "paper")
    if starts_as_itself:
        same_bits(model(image), before, "the scores after attach with init identity")
    with disabled(model):
        same_bits(model(image), before, "the scores with attention switched off")
    _learns(copy.deepcopy(model).train(), image)
    same([key for key in model.state_dict() if ".cbam." not in key], keys, "the network's own keys")
    same(detach(model), 1, "sites that detach found")
    same_bits(model(image), before, "the scores after detach")
    same(_traces(model), traces, "modules and hooks after detach")


def maps(s: Subject) -> None:
    """`attention_maps` shows gates that are the map's factors, and changes no bit and no hook."""
    model, image = _network(s)
    _attach(model, s, init="paper")
    if not sites_with_gates(model):
        raise not_applicable("no gates= of register_attention")
    scores, traces, calls = model(image), _traces(model), []
    block = next(module for name, module in model.named_modules() if name.endswith("cbam"))
    with block.register_forward_hook(lambda _, inputs, y: calls.append((inputs[0], y))):
        model(image)
    with torch.no_grad(), attention_maps(model) as found:
        same_bits(model(image), scores, "the scores while gates are recorded")
    same(_traces(model), traces, "modules and hooks after the gates were recorded")
    (gates,) = found.values()
    x, y = calls[0]
    if getattr(block, "arrangement", "") != "parallel":  # which has one gate for each element
        spread = (..., *[None] * s.dims)
        for gate in (gates.channel if gates.channel is None else gates.channel[spread], gates.spatial):
            x = x if gate is None else x * gate
        s.close(x, y, "the map times the gates that were recorded")
    expect(gates.channel is not None or gates.spatial is not None, "neither a channel nor a spatial gate")


def _network(s: Subject) -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    model = Network(s.channels, s.dims).to(s.device, s.dtype)
    image = s.map((max(2, s.shape[0]), 3, *s.shape[2:]))
    model.train()(image)
    return model.eval(), image


def _attach(model: Network, s: Subject, init: str) -> None:
    attach(model, s.given, init=init, **_where(s))


def _where(s: Subject) -> dict[str, Any]:
    return {"sites": "norm", "example_input": s.map((2, 3, *s.shape[2:])), **s.options}


def _learns(model: nn.Module, image: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # behind a weight that starts at zero the gradient is zero at first
        optimizer.zero_grad()
        model(image).square().sum().backward()
        optimizer.step()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    same(without, [], "weights that get no gradient, at which DistributedDataParallel stops")
    own = [p for name, p in model.named_parameters() if ".cbam." in name and p.grad is not None]
    learned = [bool(p.grad is not None and p.grad.abs().sum() > 0) for p in own]
    expect(not own or any(learned), "no weight of the attention gets a gradient other than zero")


def _traces(model: nn.Module) -> list[Any]:
    """Return what attach changes: modules by name and their hooks."""
    return [
        (name, id(module), type(module).__name__, *(len(getattr(module, hooks)) for hooks in _HOOKS))
        for name, module in model.named_modules()
    ]
