"""What a call costs the host: Python, dispatch and launches, on a map so small that nothing else counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from cbam.attach import attach
from cbam.bench.baselines import COPY
from cbam.bench.cases import RELU, Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device
from cbam.bench.modules import Comparison
from cbam.evaluate.timing import Candidate, interleave
from cbam.ops.dispatch import set_backend

NORM, ATTACHED = "batch norm", "batch norm with CBAM"


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Time all baselines, a ReLU, and a batch norm without and with attached CBAM, without waiting for a GPU."""
    try:
        comparison = Comparison(case, device, ())
        steps: dict[str, Callable[[], Any]] = {
            name: partial(comparison.step, name) for name in (COPY, *comparison.baselines)
        }
        layers = {RELU: nn.ReLU(), NORM: _norm(case, attached=False), ATTACHED: _norm(case, attached=True)}
        for name, layer in layers.items():
            layer.to(device.torch, comparison.x.dtype).train(comparison.grad)
            steps[name] = partial(_step, comparison, layer, list(layer.parameters()))

        def prepare(name: str) -> None:
            if name in comparison.baselines:
                comparison.baselines[name].select()
            elif name in layers:
                set_backend("auto")
            device.synchronize()

        candidates = {
            name: Candidate(step, comparison.grad and name != COPY, partial(prepare, name))
            for name, step in steps.items()
        }
        times = interleave(candidates, rounds=config.rounds, seconds=config.seconds)
    finally:
        set_backend("auto")
    return Result(case, times, input_bytes=comparison.x.nbytes)


def _norm(case: Case, attached: bool) -> nn.Module:
    """Return a batch norm, as a network has it after `cbam.attach` or before."""
    network = nn.Sequential(nn.BatchNorm2d(case.shape[1]))
    if attached:
        attach(network, sites="0", input_size=case.shape[1:])
    return network[0]


def _step(comparison: Comparison, layer: nn.Module, weights: list[nn.Parameter]) -> Any:
    y = layer(comparison.x)
    if not comparison.grad:
        return y
    return torch.autograd.grad(y, [comparison.x, *weights], comparison.gradient)
