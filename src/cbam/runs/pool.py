"""Worker processes with time limits: a task that crashes or hangs its process costs only itself."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

STARTING = 60.0
"""Seconds that a fresh worker may take beyond its first task's limit, to import libraries and to wake a GPU."""
_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context: Any = multiprocessing.get_context(_method)
_context.set_forkserver_preload(["cbam"])


@dataclass(frozen=True)
class Task:
    """One thing for a worker to do.

    Args:
        name: Unique.
        function: Called in the worker; a function of a module, since it is pickled.
        arguments: For that.
        needs: Seconds; it is not begun with less time left.
        limit: Seconds after which it is given up.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: float = 0.0
    limit: float = 60.0


@dataclass
class Answer:
    """The outcome of a task.

    Args:
        result: What the function returned.
        error: Why it did not return; empty if it did.
        seconds: How long it took.
    """

    result: Any = None
    error: str = ""
    seconds: float = 0.0
    given_up: bool = field(default=False, repr=False)
    broken: bool = field(default=False, repr=False)


class Runner(Protocol):
    """Runs tasks for `run_tasks`: in a worker process, or in this one."""

    fresh: bool

    def do(self, task: Task, seconds: float) -> Answer:
        """Do a task and return its outcome."""

    def close(self) -> None:
        """End what is running."""


class Worker:
    """One process that does tasks; started when it is needed, and again after it died.

    Args:
        environment: Variables beyond this process's own.
        log: File for what libraries print; by default it is discarded.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, log: Path | None = None):
        self.environment, self.log, self.fresh = dict(environment or {}), log, True
        self._process: Any = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Begin the process, so that it is ready by the time of its first task."""
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, self.environment, self.log))
        self._process.start()
        theirs.close()
        self.fresh = True

    def do(self, task: Task, seconds: float) -> Answer:
        """Do a task and return its outcome.

        Args:
            task: What to do.
            seconds: After which it is given up, and the process ended.
        """
        if self._process is None:
            self.start()
        assert self._pipe is not None
        try:
            self._pipe.send((task.function, task.arguments))
            if not self._pipe.poll(max(seconds, 0.1)):
                self.close()
                return Answer(error=f"took more than {seconds:.0f} s", seconds=seconds, given_up=True)
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            status = self._process.exitcode
            self.close()
            return Answer(error=f"its process ended with {status}")
        self.fresh = False
        if answer.broken:
            self.close()
        return answer

    def close(self) -> None:
        """End the process, and those that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None


@contextlib.contextmanager
def worker_pool(
    count: int, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[list[Worker]]:
    """Give some workers, started, for the length of a block."""
    found = [Worker(environment, log) for _ in range(count)]
    try:
        for worker in found:
            worker.start()
        yield found
    finally:
        for worker in found:
            worker.close()


def run_tasks(
    tasks: Sequence[Task],
    workers: Sequence[Runner],
    done: Callable[[Task, Answer], None],
    deadline: float = float("inf"),
    wanted: Callable[[Task], bool] = lambda task: True,
) -> list[tuple[Task, str]]:
    """Give the tasks to the workers in their order, until they are done or the time runs out.

    Args:
        tasks: The most important first.
        workers: Each does one task at a time.
        done: Called with every answer, one call at a time.
        deadline: Of `time.monotonic`; what would not be done by then is not begun.
        wanted: Asked just before a task begins.

    Returns:
        The tasks that were not done for lack of time or because they were not wanted, with the reason.
    """
    waiting, left, lock = list(tasks), [], threading.Lock()
    failures: list[BaseException] = []

    def follow(worker: Runner) -> None:
        try:
            while not failures:
                with lock:
                    if not waiting:
                        return
                    task, remaining = waiting.pop(0), deadline - time.monotonic()
                    if not wanted(task):
                        left.append((task, "skipped because of an earlier result"))
                        continue
                    if remaining < task.needs:
                        there = f"{max(remaining, 0):.0f} s are left"
                        left.append((task, f"not enough time: needs {task.needs:.0f} s, {there}"))
                        continue
                limit = task.limit + (STARTING if worker.fresh else 0)
                answer = worker.do(task, min(limit, remaining))
                with lock:
                    if answer.given_up and remaining < limit:
                        left.append((task, "stopped when the time ran out"))
                    else:
                        done(task, answer)
        except BaseException as error:  # of `done` or `wanted`: raised again below
            failures.append(error)

    if len(workers) == 1:  # in this thread: work in this process keeps its settings, and Ctrl-C reaches it
        try:
            follow(workers[0])
        finally:
            if failures:
                workers[0].close()
        if failures:
            raise failures[0]
        return left
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


def _serve(pipe: Connection, environment: Mapping[str, str], log: Path | None) -> None:
    """Do tasks until there are no more; what is printed goes to the log."""
    os.setsid()
    os.environ.update(environment)
    with (log or Path(os.devnull)).open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    gc.freeze()  # every capture of a CUDA graph collects garbage first; imported objects need not be searched
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        start = time.monotonic()
        try:
            answer = Answer(function(*arguments))
        except Exception as error:  # whatever it is, the other tasks can continue
            words = " ".join(str(error).split())[:300]
            answer = Answer(error=f"{type(error).__name__}: {words}", broken=_broken())
            sys.excepthook(*sys.exc_info())
        answer.seconds = time.monotonic() - start
        pipe.send(answer)


def _broken() -> bool:
    """Return whether this process can no longer use its GPU, as after an illegal access."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
