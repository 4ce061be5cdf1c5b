"""The network rows: a whole model plain, with this library's CBAM, with the textbook's, and with SE."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.attach import Attachment, attach
from cbam.bench.cells import INFERENCE, PLAIN, Cell, Result
from cbam.bench.memory import peak_bytes, saved_bytes
from cbam.bench.modules import RivalsDiffer
from cbam.bench.rivals import EAGER, OPERATOR, Textbook, operator_missing
from cbam.bench.settings import DTYPES, MEMORY_FORMATS, BenchConfig
from cbam.bench.timing import Candidate, interleave
from cbam.models import build_model
from cbam.ops.dispatch import set_backend

TEXTBOOK, SE = "textbook", "se"
_CLASSES = 1000


class Networks:
    """The networks of a cell, all with the same weights, and what is done with them.

    Args:
        cell: Which mode, images and format.
        model: Name of the network.
    """

    def __init__(self, cell: Cell, model: str):
        self.cell = cell
        self.training = cell.mode != INFERENCE
        generator = torch.Generator().manual_seed(0)
        layout, dtype = MEMORY_FORMATS[cell.memory_format], DTYPES[cell.dtype]
        self.x = torch.randn(cell.shape, generator=generator).to(dtype=dtype, memory_format=layout)
        self.target = torch.randint(_CLASSES, (cell.shape[0],), generator=generator)
        set_backend("auto")
        self.ours = OPERATOR if operator_missing() is None else EAGER
        self.networks = _build(model, self.ours, cell.shape[1:], self.x[:4].float())
        for network in self.networks.values():
            network.to(dtype).to(memory_format=layout)
            network.train(self.training)

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return one inference, or one training step, of every network."""
        return {name: self._call(network) for name, network in self.networks.items()}

    def _call(self, network: nn.Module) -> Callable[[], object]:
        if not self.training:
            return lambda: network(self.x)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            self.loss(network).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def loss(self, network: nn.Module) -> Tensor:
        """Return the training loss of a network."""
        return F.cross_entropy(network(self.x), self.target)

    def check(self) -> None:
        """Make sure that this library's and the textbook's network compute the same.

        Raises:
            RivalsDiffer: They do not.
        """
        with torch.inference_mode():
            ours, theirs = (
                network.eval()(self.x).double()
                for network in (self.networks[self.ours], self.networks[TEXTBOOK])
            )
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        limit = 1e-3 if self.cell.dtype in ("float32", "float64") else 0.1
        for network in self.networks.values():
            network.train(self.training)
        if not gap <= limit:
            raise RivalsDiffer(
                f"the networks with this library's and with the textbook's CBAM differ at {self.cell.name}: "
                f"relative difference {gap:.1e}, at most {limit:.0e} expected"
            )

    def saved(self) -> dict[str, int]:
        """Count what a forward pass of each network keeps for backward."""
        return {
            name: saved_bytes(
                lambda network=network: self.loss(network),  # type: ignore[misc]
                itertools.chain(network.parameters(), network.buffers()),
            )
            for name, network in self.networks.items()
        }


def measure(cell: Cell, config: BenchConfig) -> Result:
    """Time the networks.

    Raises:
        RivalsDiffer: The textbook's network computes something else.
    """
    networks = Networks(cell, config.model)
    networks.check()
    calls = networks.calls()
    candidates = {name: Candidate(call, networks.training) for name, call in calls.items()}
    times = interleave(candidates, rounds=config.rounds, seconds=config.seconds)
    if not networks.training:
        return Result(cell, times, input_bytes=networks.x.nbytes)
    peaks = {name: peak_bytes(call) for name, call in calls.items()}
    return Result(cell, times, networks.saved(), peaks, input_bytes=networks.x.nbytes)


def _build(model: str, ours: str, size: tuple[int, ...], images: Tensor) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build_model(model, _CLASSES)
        attended, excited = copy.deepcopy(plain), copy.deepcopy(plain)
        options: dict[str, Any] = {"init": "paper", "input_size": size}
        attachment = attach(attended, "cbam", **options)
        attach(excited, "se", **options)
    networks = {
        PLAIN: plain,
        ours: attended,
        TEXTBOOK: with_textbook(plain, attended, attachment),
        SE: excited,
    }
    for network in networks.values():
        calibrate(network, images)
    return networks


def with_textbook(plain: nn.Module, attended: nn.Module, attachment: Attachment) -> nn.Module:
    """Return the plain network with the textbook's module where `attended` has ours, and with its weights."""
    network = copy.deepcopy(plain)
    for site in attachment.sites:
        block = Textbook(site.channels)
        block.load_state_dict(attended.get_submodule(f"{site.name}.cbam").state_dict())
        host = network.get_submodule(site.name)
        both = (host, block) if site.position == "output" else (block, host)
        network.set_submodule(site.name, nn.Sequential(*both))
    return network


def calibrate(network: nn.Module, images: Tensor) -> None:
    """Give the batch norms of an untrained network the statistics of some images.

    In eval mode they would do nothing otherwise, and activations would grow or shrink from block to block, to another
    size in each of the networks; in trained networks they do not.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
