"""How often the map passes through DRAM.

Run as `python -m cbam.bench.traffic DEVICE CASES`, this is the program that ncu profiles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from cbam.bench.baselines import TEXTBOOK, ours_of
from cbam.bench.cases import BOTH, Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device, device_of
from cbam.bench.modules import Comparison
from cbam.evaluate.dram import count_dram, run_quietly

MARKER = "spin_kernel"
"""What `torch.cuda._sleep` launches: it surrounds every call in ncu's list of kernels."""
OURS = "ours"
PROVIDERS = (OURS, TEXTBOOK)
REPEATS = 3


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Count the bytes that forward and backward move through DRAM, or say why they cannot be counted."""
    shapes = [(case.shape[0], *size) for size in config.maps]
    cases = [asdict(replace(case, part="modules", mode=BOTH, shape=shape)) for shape in shapes]
    program = [sys.executable, "-m", "cbam.bench.traffic", device.kind, json.dumps(cases)]
    if not device.is_gpu:  # the program is run all the same, so that a dry run finds its mistakes
        answer = run_quietly(program, 80)
        ended = answer.stderr[-500:] if answer.returncode else "runs"
        return Result(case, extra={"why": "there is no GPU", "program": ended})
    try:
        return Result(case, extra={"regions": regions(count_dram(program), shapes)})
    except ValueError as error:
        return Result(case, extra={"why": str(error)})


def regions(
    kernels: Sequence[tuple[str, float, float]], shapes: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Give every kernel, in the order of the launches, to the call that launched it.

    A marker is in front of each call and behind it; what follows there empties the cache, and writes what the call
    left in it.

    Raises:
        ValueError: There are more or fewer calls than there should be.
    """
    parts: list[list[tuple[str, float, float]]] = []
    for kernel in kernels:
        if MARKER in kernel[0]:
            parts.append([])
        elif parts:
            parts[-1].append(kernel)
    names = list(_names(shapes))
    if len(parts) != 2 * len(names):
        raise ValueError(f"{len(parts) / 2:g} calls instead of {len(names)}")
    return [
        {
            "shape": shape, "provider": provider, "direction": direction, "kernels": call,
            "written_after": sum(written for _, _, written in after),
        }
        for (shape, provider, direction), call, after in zip(names, parts[::2], parts[1::2], strict=True)
    ]  # fmt: skip


def _names(shapes: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], str, str]]:
    for shape in shapes:
        for provider in PROVIDERS:
            for _ in range(REPEATS):
                yield shape, provider, "forward"
                yield shape, provider, "backward"


def main(kind: str, cases: Sequence[dict[str, Any]]) -> None:
    """Call each provider on each map, with markers around each call for the profiler."""
    device = device_of(kind)
    for fields in cases:
        comparison = Comparison(Case(**{**fields, "shape": tuple(fields["shape"])}), device, ())
        x, gradient = comparison.x, comparison.gradient
        for provider in PROVIDERS:
            name = ours_of(comparison.baselines) if provider == OURS else provider
            baseline = comparison.baselines[name]
            baseline.select()
            comparison.step(name)
            for _ in range(REPEATS):
                y = _marked(device, partial(baseline.module, x))
                _marked(device, partial(torch.autograd.grad, y, [x, *comparison.weights[name]], gradient))
        device.tidy()


def _marked(device: Device, call: Callable[[], Any]) -> Any:
    device.flush()
    device.synchronize()
    if device.is_gpu:
        torch.cuda.profiler.start()
        torch.cuda._sleep(1)
    found = call()
    if device.is_gpu:
        torch.cuda._sleep(1)
    device.flush()
    device.synchronize()
    if device.is_gpu:
        torch.cuda.profiler.stop()
    return found


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
