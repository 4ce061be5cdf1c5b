"""The module rows: CBAM alone, in every way that people have it, beside a copy of the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cbam.bench.cells import FORWARD, Cell, Result
from cbam.bench.memory import peak_bytes, saved_bytes
from cbam.bench.rivals import COPY, COPY_INTO, EAGER, build_rivals, operator_missing
from cbam.bench.settings import DTYPES, MEMORY_FORMATS, BenchConfig
from cbam.bench.timing import Candidate, interleave
from cbam.errors import CBAMError
from cbam.ops.dispatch import set_backend

# Largest difference to this library's eager module, relative to the largest value.
TOLERANCE = {"float64": 1e-7, "float32": 1e-4, "bfloat16": 4e-2, "float16": 5e-3}


class RivalsDiffer(CBAMError):
    """Two rivals do not compute the same, so their times must not be compared."""

    exit_code = 1


@dataclass
class Contest:
    """The rivals on one map.

    Args:
        cell: Which map, and which mode.
        compiled: Whether the compiled rivals take part.
    """

    cell: Cell
    compiled: bool

    def __post_init__(self) -> None:
        cell, (channels, *_) = self.cell, self.cell.shape[1:]
        layout, dtype = MEMORY_FORMATS[cell.memory_format], DTYPES[cell.dtype]
        generator = torch.Generator().manual_seed(0)
        self.grad = cell.mode != FORWARD
        self.x, self.gradient, self.room = (
            torch.randn(cell.shape, generator=generator).to(dtype=dtype, memory_format=layout)
            for _ in range(3)
        )
        self.x.requires_grad_(self.grad)
        if self.compiled:
            torch._dynamo.reset()  # a function may have only so many compiled forms; those of other maps are over
        self.rivals = build_rivals(channels, dtype, layout, self.compiled)
        self.ready = {name: rival.ready() for name, rival in self.rivals.items()}
        self.calls = {name: self._call(name) for name in self.rivals}
        self.notes: list[str] = []

    def _call(self, name: str) -> Callable[[], object]:
        module, x, gradient = self.rivals[name].module.train(self.grad), self.x, self.gradient
        ready, parameters = self.ready[name], list(module.parameters())

        def forward() -> Tensor:
            return ready(x)

        def both() -> None:
            ready(x).backward(gradient)
            for tensor in (x, *parameters):
                tensor.grad = None

        return both if self.grad else forward

    def drop_what_does_not_compile(self) -> None:
        """Call every compiled rival once; leave out those that cannot be compiled here, with a note."""
        for name, rival in list(self.rivals.items()):
            if rival.compiled:
                rival.select()
                try:
                    with torch.inference_mode(not self.grad):
                        self.calls[name]()
                except Exception as error:  # whatever a compiler may raise
                    self.notes.append(f"{name}: {type(error).__name__}: {_first_line(error)}")
                    del self.rivals[name], self.calls[name]

    def check(self) -> None:
        """Make sure that all rivals compute the same, in training mode their gradients too.

        Raises:
            RivalsDiffer: Two do not.
        """
        with torch.random.fork_rng(devices=[]):
            expected = self._answers(EAGER)
            for name, rival in self.rivals.items():
                if self.grad and not rival.same_in_training:
                    continue
                for what, theirs in self._answers(name).items():
                    self._compare(name, what, theirs, expected[what])

    def _answers(self, name: str) -> dict[str, Tensor]:
        rival = self.rivals[name]
        rival.select()
        with torch.inference_mode(not self.grad):
            y = self.ready[name](self.x)
        if not self.grad:
            return {"output": y}
        weights = dict(rival.module.named_parameters())
        found = torch.autograd.grad(y, [self.x, *weights.values()], self.gradient)
        names = [f"gradient of {name}" for name in ("the map", *weights)]
        return {"output": y.detach(), **dict(zip(names, found, strict=True))}

    def _compare(self, name: str, what: str, theirs: Tensor, expected: Tensor) -> None:
        limit = TOLERANCE[self.cell.dtype] * (1 if what == "output" else 10)
        theirs, expected = theirs.double().flatten(), expected.double().flatten()
        gap = (theirs - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        if not float(gap) <= limit:
            raise RivalsDiffer(
                f"{name} and {EAGER} differ at {self.cell.name}: {what}, relative difference {float(gap):.1e}, "
                f"at most {limit:.0e} expected. Times of different functions are not compared"
            )

    def saved(self) -> dict[str, int]:
        """Count what each rival keeps for backward."""
        found = {}
        for name, rival in self.rivals.items():
            rival.select()
            owned = [*rival.module.parameters(), *rival.module.buffers()]
            found[name] = saved_bytes(partial(self.ready[name], self.x), owned)
        return found

    def peaks(self) -> dict[str, int]:
        """Measure what a step of each rival takes beside the map and its gradient."""
        found = {}
        for name, call in self.calls.items():
            self.rivals[name].select()
            found[name] = peak_bytes(call)
        return found

    def candidates(self) -> dict[str, Candidate]:
        """Return what is timed: two ways to copy the map, and all rivals."""
        found = {
            COPY: Candidate(self.x.detach().clone),
            COPY_INTO: Candidate(partial(self.room.copy_, self.x.detach())),
        }
        for name, call in self.calls.items():
            found[name] = Candidate(call, self.grad, self.rivals[name].select)
        return found


def measure(cell: Cell, config: BenchConfig) -> Result:
    """Time all rivals on the cell's map.

    Raises:
        RivalsDiffer: They do not compute the same.
    """
    try:
        contest = Contest(cell, config.compile)
        contest.drop_what_does_not_compile()
        contest.check()
        times = interleave(contest.candidates(), rounds=config.rounds, seconds=config.seconds)
        saved, peaks = (contest.saved(), contest.peaks()) if contest.grad else ({}, {})
    finally:
        set_backend("auto")
    missing = operator_missing()
    notes = contest.notes + ([f"the operator: {missing}"] if missing else [])
    return Result(cell, times, saved, peaks, input_bytes=contest.x.nbytes, notes=notes)


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
