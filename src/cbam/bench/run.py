"""A whole run: measure what is missing, store every result at once, write the files."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from cbam.bench.cases import Case, Result, cases
from cbam.bench.config import ALL_PARTS, BenchConfig
from cbam.bench.device import device_of
from cbam.bench.folder import BenchFolder
from cbam.bench.gpu import WRONG
from cbam.bench.measure import compiling, measure, measuring
from cbam.errors import CBAMError
from cbam.evaluate.allocator import keep_freed_memory
from cbam.models import build_model
from cbam.ops.dispatch import set_backend
from cbam.ops.library import library_file
from cbam.runs.accelerator import describe_gpu
from cbam.runs.environment import code_hash, describe_environment, now
from cbam.runs.job import Job
from cbam.runs.pool import Answer, Task, run_tasks, worker_pool
from cbam.runs.progress import Progress

WORKERS, CORES_EACH = 8, 2
"""The most processes that compile for a GPU run, and the cores that each of them should have."""


@dataclass(frozen=True)
class Outcome:
    """What a run has found: its results, case -> why it was not measured, and the picture if there is one."""

    results: list[Result]
    left: dict[str, str]
    picture: Path | None

    @property
    def wrong(self) -> bool:
        """Whether a check found the operator wrong."""
        return any(map(is_wrong, self.results))


def prepare(config: BenchConfig, command: Sequence[str], progress: Progress) -> BenchJob:
    """Return a run that is ready to be executed; nothing was written.

    Raises:
        CBAMError: The options, the device or the folder do not fit.
    """
    config = config.in_effect()
    device = device_of(config.device)
    if why := device.unavailable_reason():
        raise CBAMError(
            f"--device cuda needs a GPU, torch for CUDA and triton; {why}. A dry run on the CPU: --device dry-run"
        )
    if "network" in config.parts and not (device.like_gpu and config.model == "resnet50"):
        with torch.device("meta"):
            build_model(config.model, 10)  # is there such a model?
    missing = device.operator_missing()
    if device.is_gpu and missing:
        raise CBAMError(f"the operator cannot run here: {missing}")
    job = BenchJob(
        config=config, command=list(command), folder=BenchFolder(config.output), progress=progress, missing=missing
    )  # fmt: skip
    job.check()
    return job


@dataclass(kw_only=True)
class BenchJob(Job[Case, Outcome]):
    """A run of `cbam bench`; `missing` says why there is no operator, `left` why a case was not measured."""

    unit: ClassVar[str] = "measurement"

    config: BenchConfig
    folder: BenchFolder
    missing: str | None
    left: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Case]:
        """The cases in the order in which they are measured."""
        return cases(self.config)

    def is_done(self, cell: Case) -> bool:
        """Whether the case is measured."""
        return cell.name in self.folder.results()

    def settings(self) -> dict[str, Any]:
        """Return what two calls must share for their measurements to appear in one table."""
        environment = describe_environment(self.command, "cpu")
        names = ("torch", "torchvision", "timm", "torch-cbam")
        operator = self.missing or device_of(self.config.device).backend
        if operator == "cpp":
            operator = hashlib.sha256(library_file().read_bytes()).hexdigest()[:12]
        return {
            **self.config.identity(), **{name: environment["packages"].get(name) for name in names},
            "commit": self.config.commit or environment["git"], "code": code_hash(), "operator": operator,
            "cpu": environment["machine"]["cpu"],
            "gpu": describe_gpu() | {"state": None} if self.config.device == "cuda" else None,
        }  # fmt: skip

    def environment(self) -> dict[str, Any]:
        """Return machine and versions; on a CPU the process keeps freed memory from now on."""
        found = describe_environment(self.command, "cpu")
        found["machine"]["load"] = (
            [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None
        )
        if self.config.like_gpu:
            return {**found, "gpu": describe_gpu()}
        found["machine"]["allocator"] = keep_freed_memory()
        return found

    def check(self) -> None:
        """Refuse a folder that holds another run, unless --restart drops it."""
        self.folder.check_settings(self.settings(), BenchConfig, self.config.restart)

    def open(self) -> None:
        """Begin or resume."""
        if self.config.restart:
            self.folder.drop()
        super().open()

    def announce(self, cells: Sequence[Case], done: Sequence[Case]) -> None:
        """Show how much there is to do."""
        self.progress.start(self.unit, len(cells), len(done))
        if len(cells) == len(done):
            self.progress.note("nothing is left to measure; --restart measures everything again")

    def execute(self) -> Outcome | None:
        """Measure what is missing, and write the files.

        Raises:
            BaselinesDiffer: Two modules that should compute the same do not.
        """
        threads = torch.get_num_threads()
        assert self.config.threads
        torch.set_num_threads(self.config.threads)
        try:
            with set_backend("auto"):
                return super().execute()
        finally:
            torch.set_num_threads(threads)

    def work(self, pending: Sequence[Case]) -> None:
        """Measure group by group; before a group, compile what it needs in several processes at once."""
        self.deadline = time.monotonic() + self.config.budget
        try:
            with _caches(self.config) as caches:
                for _, group in itertools.groupby(pending, lambda case: (case.part, case.compiles)):
                    self._measure(list(group), caches)
        finally:  # also after Ctrl-C
            if results := self._results():
                self.folder.write_outputs(results, self.settings(), self.left)

    def do(self, cell: Case) -> str:
        """Measure a case in this process."""
        return self._keep(measure(cell, self.config))

    def finish(self, worked: Sequence[Case]) -> Outcome:
        """Draw the picture, where matplotlib is installed."""
        results, picture = self._results(), None
        with contextlib.suppress(ImportError):
            from cbam.bench.figure import draw

            picture = draw(results, self.config.output)
        return Outcome(results, self.left, picture)

    def _measure(self, group: Sequence[Case], caches: dict[str, str]) -> None:
        if self.config.compile and self.config.device != "dry-run":
            self._compile([task for case in group for task in compiling(case, self.config)], caches)
        tasks = [measuring(case, self.config) for case in group]
        workers: Any = contextlib.nullcontext([InProcess()])
        if self.config.like_gpu:  # where a kernel may break its process
            workers = worker_pool(1, caches, self.folder.path / "log.txt")
        numbers = {case.name: number for number, case in enumerate(self.cells, start=1)}

        def wanted(task: Task) -> bool:
            wrong = any(map(is_wrong, self.folder.results().values()))
            if wanted := not wrong or self.config.keep_going:
                self.progress.begin(task.name, numbers[task.name])
            return wanted

        def done(task: Task, answer: Answer) -> None:
            if answer.error:
                self.left[task.name] = answer.error
            words = answer.error or self._keep(answer.result)
            self.progress.end(f"{answer.seconds:.1f} s  {words}")

        with workers as pool:
            self.left |= {task.name: why for task, why in run_tasks(tasks, pool, done, self.deadline, wanted)}

    def _compile(self, tasks: Sequence[Task], caches: dict[str, str]) -> None:
        if not tasks:
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        like_gpu, start = self.config.like_gpu, time.monotonic()
        most = min(WORKERS, max(1, cores // CORES_EACH)) if like_gpu else self.config.threads or 1
        count = min(most, len(tasks))
        # Inductor's own compile processes share the cores that are left.
        environment = {
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // count) if like_gpu else 1),
            **caches,
        }
        self.progress.phase("compiling, so that no time contains it")
        with (
            self.progress.counting("compiling") as counted,
            worker_pool(count, environment, self.folder.path / "log.txt" if like_gpu else None) as pool,
        ):
            finished = itertools.count(1)
            run_tasks(tasks, pool, lambda task, answer: counted(next(finished), len(tasks)), self.deadline)
        self.progress.line(
            f"compiling took {time.monotonic() - start:.0f} s; it is not part of any time below"
        )
        # Tuned while others used the GPU: the choice is made again by the process that measures.
        for file in Path(caches.get("TRITON_CACHE_DIR", os.devnull)).rglob("*.best_config"):
            file.unlink(missing_ok=True)

    def _keep(self, result: Result) -> str:
        self.folder.metrics.append(replace(result, finished=now()).to_json())
        for note in result.notes:
            self.progress.note(note)
        return f"{WRONG}: {', '.join(result.extra['failures'])}" if is_wrong(result) else ""

    def _results(self) -> list[Result]:
        """Return all results of the folder, also of parts that this call was not asked for, in their order."""
        done = self.folder.results()
        names = [case.name for case in cases(replace(self.config, parts=ALL_PARTS))]
        return [done[name] for name in names if name in done]


class InProcess:
    """Runs tasks in this process; an error ends the run."""

    fresh = False

    def do(self, task: Task, seconds: float) -> Answer:
        """Do a task and return its outcome."""
        start = time.monotonic()
        return Answer(task.function(*task.arguments), seconds=time.monotonic() - start)

    def close(self) -> None:
        """Do nothing: there is no process to end."""


def is_wrong(result: Result) -> bool:
    """Return whether a result is that of checks of which one failed."""
    return bool(result.extra.get("counts", {}).get(WRONG))


@contextlib.contextmanager
def _caches(config: BenchConfig) -> Iterator[dict[str, str]]:
    """On a GPU give the compilers caches that the workers share and that are gone afterwards, unless some are set."""
    if not config.like_gpu:
        yield {}
        return
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    with tempfile.TemporaryDirectory(prefix="cbam-bench-", ignore_cleanup_errors=True) as folder:
        yield {name: str(Path(folder) / part) for name, part in names.items() if name not in os.environ}
