"""The module rows: CBAM alone, in every way that people have it, beside a copy of the map."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cbam.bench.cells import FORWARD
from cbam.bench.memory import saved_bytes
from cbam.bench.rivals import COPY, COPY_INTO, EAGER, Rival
from cbam.bench.settings import DTYPES, MEMORY_FORMATS
from cbam.ops.dispatch import set_backend
from gpu import rivals as gpu_rivals
from gpu.device import Machine
from gpu.timing import Candidate, capture, interleave

CALL, GRAPH, HOT = "call", "graph", "hot graph"
"""How a time is taken: a call from Python on a cold cache; in a CUDA graph on a cold cache; the same just behind
whoever wrote the map."""
# A graph repeats the call on several maps, so that starting it does not count: of so many bytes together at most.
COLD_BYTES, HOT_BYTES, MOST_REPEATS = 128 << 20, 24 << 20, 32
COMPILE_SECONDS = 40.0
"""No further rival is compiled after so long."""
# Root of the mean square of the difference to plain torch, relative to that of the value: is it the same function?
SAME = {"float32": 0.03, "bfloat16": 0.15, "float16": 0.05}


class Contest:
    """The rivals on one map.

    Args:
        machine: Where.
        mode: forward or forward+backward.
        shape: N, C, H, W.
        dtype, memory_format: By name.
        compiled: Whether the compiled rivals take part.
    """

    def __init__(
        self,
        machine: Machine,
        mode: str,
        shape: Sequence[int],
        dtype: str,
        memory_format: str,
        compiled: bool,
    ):
        self.machine, self.mode, self.dtype = machine, mode, dtype
        self.grad = mode != FORWARD
        layout = MEMORY_FORMATS[memory_format]
        generator = torch.Generator(machine.device).manual_seed(0)

        def new() -> Tensor:
            x = torch.randn(tuple(shape), generator=generator, device=machine.device)
            return x.to(dtype=DTYPES[dtype], memory_format=layout)

        self.source, self.gradient, self.room = new(), new(), new()
        self.bytes = self.source.nbytes
        most = MOST_REPEATS if machine.is_gpu else 2
        self.repeats = {
            GRAPH: max(1, min(most, COLD_BYTES // self.bytes)),
            HOT: max(1, min(most, HOT_BYTES // self.bytes)),
        }
        self.maps = [new().requires_grad_(self.grad) for _ in range(max(self.repeats.values()))]
        self.rivals = gpu_rivals.build(
            machine, shape[1], DTYPES[dtype], MEMORY_FORMATS[memory_format], compiled
        )
        self.ready = {name: gpu_rivals.ready(machine, rival) for name, rival in self.rivals.items()}
        for rival in self.rivals.values():
            rival.module.train(self.grad)
        self.notes: list[str] = []

    def step(self, name: str, number: int = 0) -> Any:
        """Do it once on one of the maps: return the output, or in forward+backward output and gradients."""
        x = self.maps[number]
        if name == COPY:
            return x.detach().clone()
        if name == COPY_INTO:
            return self.room.copy_(x.detach())
        if not self.grad:
            with torch.inference_mode():
                return [self.ready[name](x)]
        y = self.ready[name](x)
        weights = list(self.rivals[name].module.parameters())
        return [y.detach(), *torch.autograd.grad(y, [x, *weights], self.gradient)]

    def compile(self) -> None:
        """Compile what is to be compiled; what cannot be, or comes too late, is left out with a note."""
        torch._dynamo.reset()
        start = time.monotonic()
        for name, rival in list(self.rivals.items()):
            if not rival.compiled:
                continue
            if time.monotonic() - start > COMPILE_SECONDS:
                self._drop(name, "left out, compiling took too long")
                continue
            rival.select()
            try:
                self.step(name)
            except Exception as error:  # whatever a compiler may raise
                self._drop(name, first_line(error))
        self.machine.synchronize()

    def check(self) -> dict[str, float]:
        """Return how far each rival is from plain torch; leave out with a note who computes something else."""
        with set_backend("eager"):
            expected = self.step(EAGER)
        gaps = {}
        for name, rival in list(self.rivals.items()):
            if name == EAGER or (self.grad and not rival.same_in_training):
                continue
            rival.select()
            found = self.step(name)
            gaps[name] = max(_gap(a, b) for a, b in zip(found, expected, strict=True))
            if not gaps[name] <= SAME[self.dtype]:
                self._drop(name, f"left out, computes something else: {gaps[name]:.1e} from plain torch")
        return gaps

    def times(self, kind: str, rounds: int, seconds: float) -> dict[str, list[float]]:
        """Return {provider: microseconds of one call, a sample a round}.

        Args:
            kind: CALL, GRAPH or HOT.
            rounds: At most.
            seconds: After which no new round starts.
        """
        candidates = {}
        for name in (COPY, COPY_INTO, *self.rivals):
            rival = self.rivals.get(name)
            if kind == CALL:
                prepare = partial(self._prepare, rival, self.machine.flush)
                candidates[name] = Candidate(partial(self.step, name), prepare)
                continue
            repeats = self.repeats[kind]
            before = self.machine.flush if kind == GRAPH else partial(self._produce, repeats)
            try:
                self._prepare(rival, self.machine.synchronize)
                call = capture(self.machine, [partial(self.step, name, i) for i in range(repeats)])
            except Exception as error:  # whatever cannot be captured
                self.notes.append(f"{name}: not captured: {first_line(error)}")
                continue
            candidates[name] = Candidate(call, before, repeats)
        return interleave(candidates, self.machine, rounds=rounds, seconds=seconds)

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return {provider: bytes kept for backward} and {provider: bytes that a step takes at most}."""
        saved, peak = {}, {}
        for name, rival in self.rivals.items():
            rival.select()
            owned = [*rival.module.parameters(), *rival.module.buffers()]
            saved[name] = saved_bytes(partial(self.ready[name], self.maps[0]), owned)
            peak[name] = self.machine.peak_bytes(partial(self.step, name))
        return saved, peak

    def _prepare(self, rival: Rival | None, then: Callable[[], object]) -> None:
        if rival is not None:
            rival.select()
        then()

    def _produce(self, count: int) -> None:
        """Write the maps that the next call reads, as the layer before would."""
        with torch.no_grad():
            for x in self.maps[:count]:
                x.copy_(self.source)

    def _drop(self, name: str, why: str) -> None:
        self.notes.append(f"{name}: {why}")
        del self.rivals[name]


def measure(
    machine: Machine,
    mode: str,
    shape: Sequence[int],
    dtype: str,
    memory_format: str,
    compiled: bool,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Time all rivals on one map, in every way in which times are taken.

    Args:
        machine: Where.
        mode: forward or forward+backward.
        shape: N, C, H, W.
        dtype, memory_format: By name.
        compiled: Whether the compiled rivals take part.
        rounds: At most.
        seconds: After which no new round starts, for each way.
    """
    try:
        contest = Contest(machine, mode, shape, dtype, memory_format, compiled)
        contest.compile()
        gaps = contest.check()
        found: dict[str, Any] = {"bytes": contest.bytes, "gaps": gaps, "repeats": contest.repeats}
        found["samples_us"] = {kind: contest.times(kind, rounds, seconds) for kind in (CALL, GRAPH, HOT)}
        if contest.grad:
            found["saved_bytes"], found["peak_bytes"] = contest.memory()
    finally:
        set_backend("auto")
    return found | {"notes": contest.notes}


def compile_only(
    machine: Machine, mode: str, shape: Sequence[int], dtype: str, memory_format: str
) -> dict[str, Any]:
    """Fill torch's compile cache with what `measure` needs."""
    contest = Contest(machine, mode, shape, dtype, memory_format, compiled=True)
    contest.compile()
    return {"notes": contest.notes}


def first_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _gap(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
