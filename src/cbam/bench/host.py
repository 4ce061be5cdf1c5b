"""What a call costs the host: Python, dispatch and launches, on a map so small that nothing else counts."""

from __future__ import annotations

from functools import partial

from torch import nn

from cbam.attach import attach
from cbam.bench.baselines import COPY, Baseline
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
        layers = {RELU: nn.ReLU(), NORM: _norm(case, attached=False), ATTACHED: _norm(case, attached=True)}
        candidates = {COPY: Candidate(partial(comparison.step, COPY), prepare=device.synchronize)}
        for name, layer in layers.items():
            comparison.baselines[name] = Baseline(layer.to(device.torch, comparison.x.dtype), "auto")
            comparison.ready[name] = layer
            comparison.weights[name] = list(layer.train(comparison.grad).parameters())
        for name, baseline in comparison.baselines.items():
            prepare = partial(_prepare, device, baseline)
            candidates[name] = Candidate(partial(comparison.step, name), comparison.grad, prepare)
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


def _prepare(device: Device, baseline: Baseline) -> None:
    baseline.select()
    device.synchronize()
