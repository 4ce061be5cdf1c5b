"""The network rows: a whole model plain, with this library's CBAM, with other implementations, and with SE."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.attach import attach
from cbam.bench.baselines import CAREFUL, EAGER, OPERATOR, TEXTBOOK
from cbam.bench.cases import COMPILED_NETWORKS as COMPILED
from cbam.bench.cases import GRAPH, GRAPHS, INFERENCE, PLAIN, REDUCED, UNCOMPILED, Case, Result
from cbam.bench.compiled import first_call
from cbam.bench.config import DTYPES, MEMORY_FORMATS, BenchConfig
from cbam.bench.device import Device
from cbam.bench.modules import BaselinesDiffer, first_line
from cbam.evaluate import references
from cbam.evaluate.memory import peak_bytes, saved_bytes
from cbam.evaluate.timing import Candidate, capture, interleave
from cbam.models import build_model
from cbam.ops.dispatch import set_backend
from cbam.runs.accelerator import gpu_state

SE, APART = "se", ", epilogue apart"
COMPILE_SECONDS = 90.0
"""On a GPU no further network is compiled for a case after this time."""
_CLASSES = 1000


class Networks:
    """The networks of a case, or `only` one of them, with the same weights wherever they have the same parts."""

    def __init__(self, case: Case, config: BenchConfig, device: Device, only: str = ""):
        self.case, self.device, self.training = case, device, case.mode != INFERENCE
        self.compiler = "eager" if config.small else device.compiler
        dtype, layout = DTYPES[case.dtype], MEMORY_FORMATS[case.memory_format]
        self.amp = device.like_gpu and dtype != torch.float32
        self.compiled = case.compiles
        # Under AMP images and weights are float32.
        given = torch.float32 if self.amp else dtype
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(case.shape, generator=generator)
        self.target = torch.randint(_CLASSES, (case.shape[0],), generator=generator).to(device.torch)
        built = _build(config.model, device, case.shape[1:])
        self.notes: list[str] = []
        self.ours = next(name for name in built if name.startswith("cbam"))
        self.x = self.x.to(device.torch, given).contiguous(memory_format=layout)
        # Copies: training changes them, and every case begins with the same networks.
        self.networks = {
            name: copy.deepcopy(built[name]).to(given).to(memory_format=layout).train(self.training)
            for name in self._names(built)
            if only in ("", name)
        }

    def _names(self, built: dict[str, nn.Module]) -> list[str]:
        if self.case.study in (COMPILED, REDUCED):
            return [PLAIN, self.ours, CAREFUL]
        # On a CPU the careful module is timed with the compiler only, which it is written for.
        apart = (APART,) if self.compiled else () if self.device.like_gpu else (APART, CAREFUL)
        return [name for name in built if not name.endswith(apart)]

    def select(self, name: str) -> None:
        """Choose the backend for a network: on a GPU ours shall fail rather than run as plain torch."""
        set_backend(self.device.backend if self.device.like_gpu and name.startswith(OPERATOR) else "auto")

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return one inference, or one training step, of every network, as it is run in this case."""
        return {name: self._call(network, self.compiled) for name, network in self.networks.items()}

    def _call(self, network: nn.Module, compiled: bool) -> Callable[[], object]:
        ready: Any = network
        if compiled:
            mode = "reduce-overhead" if self.case.study == REDUCED else None
            ready = torch.compile(network, dynamic=False, backend=self.compiler, mode=mode)
        if not self.training:
            return torch.inference_mode()(partial(self.forward, ready))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            self.forward(ready).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def forward(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits of a network, in training the loss."""
        # Casts are not kept from one call to the next: a graph must contain them all.
        cached = self.case.study not in (GRAPHS, COMPILED)
        with torch.autocast(self.device.torch.type, torch.bfloat16, enabled=self.amp, cache_enabled=cached):
            y = network(self.x)
            return F.cross_entropy(y, self.target) if self.training else y

    def prepare(self) -> dict[str, Callable[[], object]]:
        """Return the calls, compiled or captured where the case says so; what fails is left out with a note.

        Compiled networks also run in the device's other way: captured on a GPU, not compiled on a CPU.
        """
        if self.compiled:
            torch._dynamo.reset()
        start, found = time.monotonic(), {}
        for name, call in self.calls().items():
            if self.compiled and self.device.is_gpu and time.monotonic() - start > COMPILE_SECONDS:
                self.notes.append(f"{name}: left out, compiling took too long")
                continue
            self.select(name)
            try:
                if self.compiled:
                    first_call(call)
                elif self.device.like_gpu:
                    call()
                found[name] = capture([call], self.device.torch) if self.case.study == GRAPHS else call
                if self.case.study == COMPILED:
                    if self.device.like_gpu:
                        found[name + GRAPH] = capture([call], self.device.torch)
                    else:
                        found[name + UNCOMPILED] = self._call(self.networks[name], False)
            except Exception as error:  # whatever a compiler may raise, or no memory left
                if not (self.device.like_gpu or self.compiled):
                    raise
                self.notes.append(f"{name}: {first_line(error)}")
        return found

    def check(self) -> None:
        """Make sure that this library's networks and the others with CBAM compute the same.

        Raises:
            BaselinesDiffer: They do not.
        """
        logits = {}
        with torch.inference_mode(), torch.autocast(self.device.torch.type, torch.bfloat16, enabled=self.amp):
            for name, network in self.networks.items():
                if name not in (PLAIN, SE):
                    self.select(name)
                    logits[name] = network.eval()(self.x).double()
                    network.train(self.training)
        # On a GPU norms, as for modules.
        order, limit = (2.0, 0.1) if self.device.like_gpu else (math.inf, 0.1)
        if not self.device.like_gpu and self.case.dtype in ("float32", "float64"):
            limit = 1e-3
        ours = logits[self.ours]
        for name, theirs in logits.items():
            size = torch.linalg.vector_norm(theirs, order)
            gap = float(torch.linalg.vector_norm(ours - theirs, order) / size)
            if not gap <= limit:
                raise BaselinesDiffer(
                    f"the networks with this library's CBAM and with {name}'s differ at {self.case.name}: "
                    f"relative difference {gap:.1e}, at most {limit:.0e} expected"
                )

    def saved(self) -> dict[str, int]:
        """Count what a forward pass of each network keeps for backward."""
        found = {}
        for name, network in self.networks.items():
            self.select(name)
            owned = itertools.chain(network.parameters(), network.buffers())
            found[name] = saved_bytes(partial(self.forward, network), owned)
        return found


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Time the networks.

    Raises:
        BaselinesDiffer: One computes something else.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # as for any training on images of one size
    try:
        networks = Networks(case, config, device)
        networks.check()
        calls = networks.prepare()
        candidates = {
            name: Candidate(call, networks.training, partial(networks.select, name), single=device.like_gpu)
            for name, call in calls.items()
        }
        times = interleave(candidates, rounds=config.rounds, seconds=config.seconds, clock=device.clock())
        result = Result(case, times, input_bytes=networks.x.nbytes, notes=networks.notes)
        if networks.training and case.study != GRAPHS:
            for name in networks.networks.keys() & calls.keys():
                networks.select(name)
                result.peak_bytes[name] = peak_bytes(calls[name], device.torch.type)
            if not networks.compiled:
                result.saved_bytes = networks.saved()
        if device.is_gpu:
            result.extra = {"state": gpu_state()}
    finally:
        torch.backends.cudnn.benchmark = before
        set_backend("auto")
    return result


@cache
def _build(model: str, device: Device, size: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return all networks in float32, their batch norms calibrated."""
    set_backend("auto")
    ours = OPERATOR if device.operator_missing() is None else EAGER
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build_model(model, _CLASSES)
        attended, apart, excited = (copy.deepcopy(plain) for _ in range(3))
        options: dict[str, Any] = {"init": "paper", "input_size": size}
        attachment = attach(attended, "cbam", **options)
        attach(apart, "cbam", fuse_epilogue=False, **options)
        apart.load_state_dict(attended.state_dict())
        attach(excited, "se", **options)
        images = torch.randn(8 if device.is_gpu else 4, *size, generator=torch.Generator().manual_seed(0))
    networks = {
        PLAIN: plain,
        ours: attended,
        ours + APART: apart,
        TEXTBOOK: references.with_module(references.Textbook, plain, attended, attachment),
        CAREFUL: references.with_module(references.Careful, plain, attended, attachment),
        SE: excited,
    }
    for network in networks.values():
        references.calibrate(network.to(device.torch), images.to(device.torch))
    return networks
