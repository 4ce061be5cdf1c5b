"""The order of events: look at the machine, check, compile ahead, measure, write."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.environment import describe_environment
from gpu import device, plan, report
from gpu.correctness import WRONG
from gpu.plan import SCALES, Job
from gpu.pool import Worker, run_jobs
from gpu.store import Store, code_hash

AHEAD_SHARE = 0.4
"""The part of the time that checks and compiling ahead may take."""
WRITE_EVERY = 2.0
"""Seconds between two writes of the results, at least."""
WORKERS = 6
CORES_EACH = 2
BUDGETS = {"full": 450.0, "quick": 150.0, "tiny": 300.0}


def main(arguments: Sequence[str]) -> int:
    """Run it; return 0, or 1 if the operator is wrong, or 2 if nothing can be measured."""
    options = _options(arguments)
    # A time limit's SIGTERM shall end the workers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.device == "cuda" and (why := device.missing()) is not None:
        _say(f"measure.py needs a GPU with CUDA, torch for CUDA and triton; {why}.\n"
             "A dry run that measures nothing: --device cpu --tiny")  # fmt: skip
        return 2
    if options.device == "cpu" and not options.tiny:
        _say("measure.py: --device cpu is a dry run and goes with --tiny only")
        return 2
    try:
        return Session(options).run()
    except CBAMError as error:
        _say(f"measure.py: {error}")
        return 2


class Session:
    """One call of the script.

    Args:
        options: As parsed.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        name = "tiny" if options.tiny else "quick" if options.quick else "full"
        self.scale = SCALES[name]
        self.start = time.monotonic()
        self.budget = options.budget or BUDGETS[name]
        self.store = Store(options.output)
        self.written = self.start

    def run(self) -> int:
        """Do everything that there is time for."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        with (self.options.output / "log.txt").open("ab") as log, _caches() as caches:
            self.log, self.caches = log, caches
            checks, timings = list(plan.checks(self.scale)), list(plan.timings(self.scale))

            def wanted(job: Job) -> bool:
                return job in checks or not self.wrong or self.options.keep_going

            with self._workers(self._count()) as workers:
                self._describe(workers[0])
                needed = {job.name for job in timings if not self.store.done(job.name)}
                ahead = [job for job in plan.ahead(self.scale) if job.serves in needed]
                late = self._do([*checks, *ahead], workers, AHEAD_SHARE, wanted)
            # Tuned while others used the GPU: the choice is made again by whoever measures.
            for file in caches.rglob("*.best_config"):
                file.unlink(missing_ok=True)
            left = [job for job, _ in late if job in checks]
            rest = [*timings, *left]
            with self._workers(0 if all(self.store.done(job.name) for job in rest) else 1) as workers:
                self._do(rest, workers, 1.0, wanted)
        return self._finish()

    @property
    def wrong(self) -> list[str]:
        """The checks that found something wrong, or did not come back."""
        return [
            name
            for name, job in self.store.jobs.items()
            if job["kind"] == "check" and job.get("result", {"status": WRONG})["status"] == WRONG
        ]

    def _describe(self, worker: Worker) -> None:
        answer = worker.do(Job("describe", "describe"), 120)
        if "error" in answer:
            raise CBAMError(
                f"the device does not work: {answer['error']}. See {self.options.output / 'log.txt'}"
            )
        gpu = answer["result"]
        environment = describe_environment(["measure.py", *sys.argv[1:]], "cpu") | {"gpu": gpu}
        identity = {
            "code": code_hash(), "commit": self.options.commit or environment["git"], "device": gpu["device"],
            "torch": gpu["packages"]["torch"], "triton": gpu["packages"]["triton"], "scale": self.scale.name,
        }  # fmt: skip
        self.store.open(identity, environment, self.options.restart)
        self._tell(
            f"{gpu['device']}, torch {identity['torch']}; operator ({gpu['backend']}): {gpu['operator']}"
        )
        if gpu["operator"] != "runs":
            raise CBAMError(f"the operator cannot run here: {gpu['operator']}")

    def _do(
        self, jobs: Sequence[Job], workers: Sequence[Worker], share: float, wanted: Callable[[Job], bool]
    ) -> list[tuple[Job, str]]:
        """Run jobs on some workers until a share of the budget is used; keep the answers, return what is left."""
        waiting = [job for job in jobs if job.serves or not self.store.done(job.name)]
        deadline = self.start + share * self.budget
        try:
            left = run_jobs(waiting, workers, deadline, self._keep, wanted)
            for job, why in left:
                if not job.serves:
                    self.store.skip(job.name, why)
        finally:  # also when somebody stops it
            self._write()
        return left

    def _keep(self, job: Job, answer: dict[str, Any]) -> None:
        self.store.add(job.name, job.kind, job.arguments, answer)
        outcome = answer.get("error") or answer["result"].get("status", "")
        self._tell(f"{job.name}: {answer.get('seconds', 0):.1f} s {outcome}")
        if time.monotonic() - self.written > WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        self.store.save()
        try:
            table = report.report(self.store, self.scale)
        except Exception as error:  # the numbers are safe, and a table can be made of them later
            self._tell(f"no table: {error!r}")
        else:
            write_atomically(self.options.output / "gpu.md", table)
        self.written = time.monotonic()

    def _finish(self) -> int:
        wrong = self.wrong
        skipped = len(self.store.content["skipped"])
        self._tell(
            f"written: {self.store.path} and gpu.md; {skipped} left out for lack of time or after an error"
        )
        if wrong:
            self._tell(f"WRONG: {len(wrong)} checks, the first: {wrong[0]}")
        return 1 if wrong else 0

    def _count(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(WORKERS, cores // CORES_EACH)) if not self.scale.tiny else 1

    @contextlib.contextmanager
    def _workers(self, count: int) -> Iterator[list[Worker]]:
        cores = os.cpu_count() or 1
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.caches / "inductor"),
            "TRITON_CACHE_DIR": str(self.caches / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // max(1, count))),
        }
        workers = [Worker(self.options.device, environment, self.log) for _ in range(count)]
        try:
            for worker in workers:
                worker.start()
            yield workers
        finally:
            for worker in workers:
                worker.close()

    def _tell(self, text: str) -> None:
        _say(f"[{time.monotonic() - self.start:4.0f} s] {text}")


@contextlib.contextmanager
def _caches() -> Iterator[Path]:
    """Give the compilers a place that the workers share and that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cbam-gpu-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="measure.py", description="Check and measure the operator on a GPU."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json, gpu.md and log.txt")
    parser.add_argument(
        "--budget", type=float, help="seconds; what does not fit in is left out (450; quick: 150)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few shapes, nothing compiled: does it work here?"
    )
    parser.add_argument("--restart", action="store_true", help="forget what the folder holds")
    parser.add_argument("--keep-going", action="store_true", help="measure even what is wrong")
    parser.add_argument("--commit", help="of this code, where it is not in a git repository")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run, with --tiny"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a dry run")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
