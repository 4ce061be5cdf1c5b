"""The module rows: CBAM alone, in every implementation, next to a copy of the map."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cbam.bench.baselines import CAREFUL, COPY, COPY_INTO, EAGER, OPERATOR, Baseline, build_baselines, ours_of
from cbam.bench.cases import EVERYTHING_COMPILED, FORWARD, GRAPH, HOT, ONE_THREAD, Case, Result
from cbam.bench.compiled import first_call
from cbam.bench.config import DTYPES, MEMORY_FORMATS, BenchConfig
from cbam.bench.device import Device
from cbam.errors import CBAMError
from cbam.evaluate.memory import peak_bytes, saved_bytes
from cbam.evaluate.timing import Candidate, capture, interleave
from cbam.ops.dispatch import set_backend

# Largest difference to this library's eager module, relative to the largest value.
TOLERANCE = {"float64": 1e-7, "float32": 1e-4, "bfloat16": 4e-2, "float16": 5e-3}
# On a GPU: norm of the difference over norm of the values, since near ties of two maxima may go either way in there.
GPU_TOLERANCE = {"float64": 0.03, "float32": 0.03, "bfloat16": 0.15, "float16": 0.05}
# A graph repeats the call on several maps, so that starting it does not count: of at most so many bytes together.
COLD_BYTES, HOT_BYTES, MOST_REPEATS = 128 << 20, 24 << 20, 32
COMPILE_SECONDS = 40.0
"""On a GPU nothing more is compiled for a case after this time."""


class BaselinesDiffer(CBAMError):
    """Two modules do not compute the same, so their times must not be compared."""

    exit_code = 1


class Comparison:
    """The baselines on one map; for `compiled` see `build_baselines`."""

    def __init__(self, case: Case, device: Device, compiled: Collection[str] | None = None):
        self.case, self.device, self.grad = case, device, case.mode != FORWARD
        layout, dtype = MEMORY_FORMATS[case.memory_format], DTYPES[case.dtype]
        generator = torch.Generator(device.torch).manual_seed(0)

        def new() -> Tensor:
            x = torch.randn(case.shape, generator=generator, device=device.torch)
            return x.to(dtype=dtype, memory_format=layout)

        self.x, self.gradient, self.room = new(), new(), new()
        most = MOST_REPEATS if device.is_gpu else 2
        limits = {GRAPH: COLD_BYTES, HOT: HOT_BYTES} if device.like_gpu else {}
        self.repeats = {way: max(1, min(most, limit // self.x.nbytes)) for way, limit in limits.items()}
        self.maps = [self.x, *(new() for _ in range(max(self.repeats.values(), default=1) - 1))]
        for x in self.maps:
            x.requires_grad_(self.grad)
        if compiled is None or compiled:
            torch._dynamo.reset()  # a function may have only so many compiled forms; those of other maps are over
        self.baselines = build_baselines(device, case.shape[1], dtype, layout, compiled)
        self.ready = {name: baseline.ready(device) for name, baseline in self.baselines.items()}
        self.weights = {n: list(b.module.train(self.grad).parameters()) for n, b in self.baselines.items()}
        self.notes: list[str] = []

    def step(self, name: str, number: int = 0) -> Any:
        """Make one call on one of the maps: return the output, with backward the output and the gradients."""
        x = self.maps[number]
        if name == COPY:
            return x.detach().clone()
        if name == COPY_INTO:
            return self.room.copy_(x.detach())
        y = self.ready[name](x)
        if not self.grad:
            return [y]
        return [y.detach(), *torch.autograd.grad(y, [x, *self.weights[name]], self.gradient)]

    def compile(self) -> None:
        """Call every compiled baseline once; leave out those that cannot be compiled here, with a note."""
        start = time.monotonic()
        for name in [name for name, baseline in self.baselines.items() if baseline.compiled]:
            if self.device.is_gpu and time.monotonic() - start > COMPILE_SECONDS:
                self._drop(name, "left out, compiling took too long")
                continue
            try:
                first_call(partial(self._answer, name))
            except Exception as error:  # whatever a compiler may raise
                self._drop(name, first_line(error))

    def check(self) -> None:
        """Make sure that all baselines compute the same, with backward their gradients too.

        On a GPU, where rounding differs more, another module than this library's that does not is left out.

        Raises:
            BaselinesDiffer: Two differ.
        """
        with torch.random.fork_rng(devices=[]):
            expected = self._answer(EAGER)
            for name, baseline in list(self.baselines.items()):
                if self.grad and not baseline.same_in_training:
                    continue
                weights = [f"gradient of {weight}" for weight, _ in baseline.module.named_parameters()]
                found = zip(
                    ["output", "gradient of the map", *weights], self._answer(name), expected, strict=False
                )
                why = next(filter(None, (self._difference(*parts) for parts in found)), None)
                if why is None:
                    continue
                if self.device.is_gpu and name != OPERATOR:
                    self._drop(name, f"left out, computes something else: {why}")
                    continue
                raise BaselinesDiffer(
                    f"{name} and {EAGER} differ at {self.case.name}: {why}. Times of different functions "
                    "are not compared"
                )

    def _answer(self, name: str) -> list[Tensor]:
        self.baselines[name].select()
        with torch.inference_mode(not self.grad):
            return self.step(name)

    def _difference(self, what: str, found: Tensor, expected: Tensor) -> str | None:
        order, limit = math.inf, TOLERANCE[self.case.dtype] * (1 if what == "output" else 10)
        if self.device.is_gpu:
            order, limit = 2.0, GPU_TOLERANCE[self.case.dtype]
        found, expected = found.double().flatten(), expected.double().flatten()
        size = torch.linalg.vector_norm(expected, order).clamp_min(1e-30)
        gap = float(torch.linalg.vector_norm(found - expected, order) / size)
        return (
            None if gap <= limit else f"{what}, relative difference {gap:.1e}, at most {limit:.0e} expected"
        )

    def candidates(self, way: str = "") -> dict[str, Candidate]:
        """Return what is timed: two ways to copy the map, and all baselines.

        Args:
            way: "" for a call from Python, on a GPU with a cold cache; GRAPH or HOT for CUDA graphs.
        """
        found = {}
        for name in (COPY, COPY_INTO, *self.baselines):
            baseline = self.baselines.get(name, Baseline(torch.nn.Identity()))
            grad = self.grad and name in self.baselines
            if not way:
                flush = self.device.flush if self.device.like_gpu else None
                prepare = partial(_both, baseline.select, flush)
                found[name] = Candidate(partial(self.step, name), grad, prepare, single=self.device.like_gpu)
                continue
            repeats = self.repeats[way]
            baseline.select()
            try:
                with torch.inference_mode(not grad):
                    call = capture([partial(self.step, name, i) for i in range(repeats)], self.device.torch)
            except Exception as error:  # whatever cannot be captured
                self.notes.append(f"{name}: not captured: {first_line(error)}")
                continue
            before = self.device.flush if way == GRAPH else partial(self._write_maps, repeats)
            prepare = partial(_both, baseline.select, before)
            found[name] = Candidate(call, grad, prepare, single=True, contains=repeats)
        return found

    def times(self, config: BenchConfig) -> dict[str, list[float]]:
        """Time all candidates in every way that the device has."""
        found: dict[str, list[float]] = {}
        for way in ("", *self.repeats):
            times = interleave(
                self.candidates(way), rounds=config.rounds, seconds=config.seconds, clock=self.device.clock()
            )
            found |= {name + way: samples for name, samples in times.items()}
        return found

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return what each baseline keeps for backward, and what a step needs beyond the map and its gradient."""
        saved, peaks = {}, {}
        for name, baseline in self.baselines.items():
            baseline.select()
            owned = [*baseline.module.parameters(), *baseline.module.buffers()]
            saved[name] = saved_bytes(partial(self.ready[name], self.x), owned)
            peaks[name] = peak_bytes(partial(self.step, name), self.device.torch.type)
        return saved, peaks

    def _write_maps(self, count: int) -> None:
        """Write the maps that the next call reads, as the layer before would."""
        with torch.no_grad():
            for x in self.maps[:count]:
                x.copy_(self.gradient)

    def _drop(self, name: str, why: str) -> None:
        self.notes.append(f"{name}: {why}")
        del self.baselines[name]


def compiled_in(case: Case, config: BenchConfig) -> Collection[str] | None:
    """Return which baselines a case compiles: on a GPU, where that takes long, first the two that matter most."""
    if not config.compile:
        return ()
    return ("cbam", CAREFUL) if config.like_gpu and case.study != EVERYTHING_COMPILED else None


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Time all baselines on the case's map.

    Raises:
        BaselinesDiffer: They do not compute the same.
    """
    try:
        comparison = Comparison(case, device, compiled_in(case, config))
        comparison.compile()
        comparison.check()
        times = comparison.times(config)
        saved, peaks = comparison.memory() if comparison.grad else ({}, {})
    finally:
        set_backend("auto")
    missing = device.operator_missing()
    notes = comparison.notes + ([f"the operator: {missing}"] if missing else [])
    return Result(case, times, saved, peaks, input_bytes=comparison.x.nbytes, notes=notes)


def measure_scaling(case: Case, config: BenchConfig, device: Device) -> Result:
    """Time this library's module, and a copy, at one size; in the study of threads with one thread and with all."""
    try:
        comparison = Comparison(case, device, ())
        every = comparison.candidates()
        candidates = {name: every[name] for name in (COPY, ours_of(every))}
        seconds = config.seconds / 8  # there are many sizes
        if case.study == "threads":
            candidates = {
                name + suffix: replace(
                    one, prepare=partial(_both, partial(torch.set_num_threads, n), one.prepare)
                )
                for suffix, n in (("", case.threads), (ONE_THREAD, 1))
                for name, one in candidates.items()
            }
            seconds = config.seconds
        times = interleave(candidates, rounds=config.rounds, seconds=seconds, clock=device.clock())
    finally:
        set_backend("auto")
        if case.threads:
            torch.set_num_threads(case.threads)
    return Result(case, times, input_bytes=comparison.x.nbytes)


def first_line(error: BaseException) -> str:
    """Return an error in one line.

    >>> first_line(ValueError("no such shape\\nand more"))
    'ValueError: no such shape'
    """
    lines = str(error).strip().splitlines()
    if isinstance(error, CBAMError):  # ours say what is wrong
        return lines[0]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _both(first: Callable[[], object], second: Callable[[], object] | None) -> None:
    first()
    if second:
        second()
