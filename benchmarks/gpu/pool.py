"""Worker processes with time limits: give out jobs, collect answers, end what takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gpu.plan import Job

ROOT = Path(__file__).resolve().parents[2]
STARTING = 60.0
"""Seconds that a fresh worker may take beyond its first job's limit, to import torch and to wake the GPU."""


class Worker:
    """One process that does jobs; started when it is needed, and again after it died.

    Args:
        device: "cuda" or "cpu".
        environment: Beyond this process's own.
        log: Where it writes what it has to say.
    """

    def __init__(self, device: str, environment: Mapping[str, str], log: IO[bytes]):
        self.device, self.log = device, log
        path = os.pathsep.join(
            [str(ROOT / "benchmarks"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        )
        self.environment = {**os.environ, **environment, "PYTHONPATH": path.rstrip(os.pathsep)}
        self.fresh = True
        """Whether it has not answered yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue()

    def do(self, job: Job, seconds: float) -> dict[str, Any]:
        """Do a job and return its answer: what came out, or "error" with the reason why nothing did.

        Args:
            job: What to do.
            seconds: After which it is given up, and the process ended.
        """
        process = self._process or self.start()
        assert process.stdin is not None
        line = json.dumps({"kind": job.kind, "arguments": job.arguments}).encode() + b"\n"
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
            try:
                answer = self._answers.get(timeout=max(seconds, 0.1))
            except queue.Empty:
                self.close()
                return {"error": f"given up after {seconds:.0f} s", "given_up": True}
        if not answer:
            status = process.wait()
            self.close()
            return {"error": f"the process died ({status}); its last words are in the log"}
        self.fresh = False
        found = json.loads(answer)
        if found.pop("broken", False):
            self.close()
        return found

    def close(self) -> None:
        """End the process, and those that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def start(self) -> subprocess.Popen[bytes]:
        """Begin the process, so that it is ready by the time of its first job."""
        self.fresh = True
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu.worker", self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=self.environment,
            start_new_session=True,
        )
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        return self._process


def _read(stream: IO[bytes], answers: queue.Queue[bytes]) -> None:
    for line in stream:
        answers.put(line)
    answers.put(b"")


def run_jobs(
    jobs: Sequence[Job],
    workers: Sequence[Worker],
    deadline: float,
    done: Callable[[Job, dict[str, Any]], None],
    wanted: Callable[[Job], bool] = lambda job: True,
) -> list[tuple[Job, str]]:
    """Give the jobs to the workers in their order, until they are done or the time is over.

    Args:
        jobs: The most important first.
        workers: Each does one job at a time.
        deadline: Of `time.monotonic`; what would not be done by then is not begun.
        done: Called with every answer, one call at a time.
        wanted: Asked just before a job begins.

    Returns:
        The jobs that were not begun, with the reason.
    """
    waiting, left, lock = list(jobs), [], threading.Lock()
    failures: list[BaseException] = []

    def follow(worker: Worker) -> None:
        try:
            work(worker)
        except BaseException as error:  # of `done` or `wanted`: raised again by whoever waits for us
            failures.append(error)

    def work(worker: Worker) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                job = waiting.pop(0)
                remaining = deadline - time.monotonic()
                if not wanted(job):
                    left.append((job, "not after what was found before"))
                    continue
                if remaining < job.needs:
                    left.append(
                        (job, f"no time left: needs {job.needs:.0f} s, {max(remaining, 0):.0f} s were there")
                    )
                    continue
            limit = job.limit + (STARTING if worker.fresh else 0)
            answer = worker.do(job, min(limit, remaining))
            with lock:
                if answer.pop("given_up", False) and remaining < limit:
                    left.append((job, "cut off when the time was over"))
                else:
                    done(job, answer)

    threads = [threading.Thread(target=follow, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        deadline = -float("inf")
        for worker in workers:
            worker.close()
        raise
    if failures:
        raise failures[0]
    return left
