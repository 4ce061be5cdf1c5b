"""The network rows: ResNet-50 plain, with SE, with the textbook's CBAM and with ours, under AMP."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.attach import attach
from cbam.bench.cells import INFERENCE, PLAIN
from cbam.bench.memory import saved_bytes
from cbam.bench.modules import RivalsDiffer
from cbam.bench.network import SE, TEXTBOOK, calibrate, with_textbook
from cbam.ops.dispatch import set_backend
from gpu.device import Machine
from gpu.module import first_line
from gpu.resnet import ResNet
from gpu.timing import Candidate, capture, interleave

OURS, OURS_APART = "cbam", "cbam, epilogue apart"
ALL = (PLAIN, OURS, OURS_APART, TEXTBOOK, SE)
WAYS = ("eager", "compiled", "graph")
COMPILE_SECONDS = 90.0
"""No further network is compiled after so long."""
CALIBRATION = 8
"""Images that the batch norms take their statistics from."""
SAME = 0.1


@cache
def networks(machine: Machine, tiny: bool, size: int) -> tuple[dict[str, nn.Module], str]:
    """Return all networks, with the same weights wherever they have the same parts, and who wrote the plain one.

    Args:
        machine: Where they shall be.
        tiny: A small network, for a dry run.
        size: Height and width of the images.
    """
    torch.manual_seed(0)
    plain, source = _plain(tiny)
    options: dict[str, Any] = {"init": "paper", "input_size": (3, size, size)}
    attended, epilogues, excited = (copy.deepcopy(plain) for _ in range(3))
    attachment = attach(attended, "cbam", fuse_epilogue=False, **options)
    attach(epilogues, "cbam", fuse_epilogue=True, **options)
    epilogues.load_state_dict(attended.state_dict())
    attach(excited, "se", **options)
    found = {
        PLAIN: plain,
        OURS: epilogues,
        OURS_APART: attended,
        TEXTBOOK: with_textbook(plain, attended, attachment),
        SE: excited,
    }
    images = torch.randn(CALIBRATION, 3, size, size, device=machine.device)
    images = images.contiguous(memory_format=torch.channels_last)
    for name, network in found.items():
        network.to(machine.device).to(memory_format=torch.channels_last)
        select(machine, name)
        calibrate(network, images)
    return found, source


def _plain(tiny: bool) -> tuple[nn.Module, str]:
    if tiny:
        return ResNet(layers=(1, 1, 1, 1), width=8, classes=10), "a small one of our own"
    try:
        from torchvision.models import resnet50
    except (ImportError, RuntimeError) as error:  # the latter where it does not fit the torch that is there
        return ResNet(), f"our own, torchvision cannot be had: {first_line(error)}"
    return resnet50(), "torchvision"


def select(machine: Machine, name: str) -> None:
    """Choose the backend for a network: ours shall fail rather than run as plain torch."""
    set_backend(machine.backend if name in (OURS, OURS_APART) else "auto")


class Race:
    """Some of the networks on some images.

    Args:
        machine: Where.
        mode: inference or training step.
        way: eager, compiled or graph.
        batch, size: Of the images.
        tiny: Small networks.
        names: Which networks.
    """

    def __init__(self, machine: Machine, mode: str, way: str, batch: int, size: int, tiny: bool, names: Any):
        self.machine, self.way, self.training = machine, way, mode != INFERENCE
        found, self.source = networks(machine, tiny, size)
        # Copies: a training step changes statistics, and every measurement shall begin with the same networks.
        self.networks = {name: copy.deepcopy(found[name]).train(self.training) for name in names}
        x = torch.randn(batch, 3, size, size, device=machine.device)
        self.x = x.contiguous(memory_format=torch.channels_last)
        classes = list(found[PLAIN].parameters())[-1].numel()
        self.target = torch.randint(classes, (batch,), device=machine.device)
        self.calls: dict[str, Callable[[], object]] = {}
        self.notes: list[str] = []

    def forward(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits under AMP, or in training the loss."""
        # Casts are not kept from one call to the next: a graph must contain them all.
        with torch.autocast(self.machine.kind, torch.bfloat16, cache_enabled=self.way != "graph"):
            y = network(self.x)
            return F.cross_entropy(y, self.target) if self.training else y

    def prepare(self) -> None:
        """Make what is timed, one call for each network; what cannot be compiled or captured is left out."""
        torch._dynamo.reset()
        start = time.monotonic()
        for name, network in self.networks.items():
            if self.way == "compiled" and time.monotonic() - start > COMPILE_SECONDS:
                self.notes.append(f"{name}: left out, compiling took too long")
                continue
            select(self.machine, name)
            try:
                call = self._call(network)
                for _ in range(2):
                    call()
                self.calls[name] = capture(self.machine, [call]) if self.way == "graph" else call
            except Exception as error:  # whatever a compiler may raise, or no memory left
                self.notes.append(f"{name}: {first_line(error)}")
        self.machine.synchronize()

    def _call(self, network: nn.Module) -> Callable[[], object]:
        ready: Any = network
        if self.way == "compiled":
            ready = torch.compile(network, dynamic=False, backend=self.machine.compiler)
        if not self.training:
            return partial(torch.inference_mode()(self.forward), ready)
        # The weights stay as they are, or later measurements would be of networks that differ.
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

        def step() -> None:
            self.forward(ready).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def times(self, rounds: int, seconds: float) -> dict[str, list[float]]:
        """Return {network: microseconds, a sample a round}."""
        candidates = {
            name: Candidate(call, partial(select, self.machine, name)) for name, call in self.calls.items()
        }
        return interleave(candidates, self.machine, rounds=rounds, seconds=seconds)

    def memory(self) -> dict[str, dict[str, int]]:
        """Return bytes that a step takes at most and, where nothing is compiled, what is kept for backward."""
        peak, saved = {}, {}
        for name, call in self.calls.items():
            select(self.machine, name)
            peak[name] = self.machine.peak_bytes(call)
            if self.training and self.way == "eager":
                network = self.networks[name]
                owned = itertools.chain(network.parameters(), network.buffers())
                saved[name] = saved_bytes(partial(self.forward, network), owned)
        return {"peak_bytes": peak, "saved_bytes": saved}

    def gaps(self) -> dict[str, float]:
        """Return how far our networks' logits are from those of the textbook's.

        Raises:
            RivalsDiffer: Too far.
        """
        found = {}
        logits = {}
        with torch.inference_mode(), torch.autocast(self.machine.kind, torch.bfloat16):
            for name in {OURS, OURS_APART, TEXTBOOK} & set(self.networks):
                select(self.machine, name)
                logits[name] = self.networks[name].eval()(self.x).float()
                self.networks[name].train(self.training)
        if TEXTBOOK in logits:
            theirs = logits.pop(TEXTBOOK)
            found = {name: float((y - theirs).norm() / theirs.norm()) for name, y in logits.items()}
        if any(not gap <= SAME for gap in found.values()):
            raise RivalsDiffer(f"the networks with our CBAM and the textbook's differ: {found}")
        return found


def measure(
    machine: Machine,
    mode: str,
    way: str,
    batch: int,
    size: int,
    tiny: bool,
    names: list[str],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Time the networks, one inference or one training step each.

    Args:
        machine: Where.
        mode: inference or training step.
        way: eager, compiled or graph.
        batch, size: Of the images.
        tiny: Small networks, for a dry run.
        names: Which networks.
        rounds: At most.
        seconds: After which no new round starts.

    Raises:
        RivalsDiffer: Ours computes something else than the textbook's.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # as everybody does who trains on images of one size
    try:
        race = Race(machine, mode, way, batch, size, tiny, names)
        gaps = race.gaps()
        race.prepare()
        samples = race.times(rounds, seconds)
        memory = {} if way == "graph" else race.memory()
    finally:
        torch.backends.cudnn.benchmark = before
        set_backend("auto")
    return {"source": race.source, "gaps": gaps, "samples_us": samples, **memory, "notes": race.notes}


def compile_only(
    machine: Machine, mode: str, batch: int, size: int, tiny: bool, names: list[str]
) -> dict[str, Any]:
    """Fill torch's compile cache with what `measure` needs."""
    try:
        race = Race(machine, mode, "compiled", batch, size, tiny, names)
        race.prepare()
    finally:
        set_backend("auto")
    return {"notes": race.notes}
