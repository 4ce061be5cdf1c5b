"""Tasks on other machines: a Ray cluster, or Slurm through submitit.

Every task runs in a process of its own, which writes into the run's folder as this one would; all machines see that
folder. Finished tasks are kept: the same command does the rest, on the cluster or here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from cbam.errors import CBAMError, MissingExtra
from cbam.runs.progress import Progress

_POLL_SECONDS = 0.5


class TasksFailed(CBAMError):
    """Some tasks failed; the results of the others are kept."""

    exit_code = 1


class Task(Protocol):
    """Something to do that can be pickled."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    def __call__(self) -> None:
        """Do it, unless it is done."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where tasks run.

    Attributes:
        ray: The address of a Ray cluster, "auto" for the one that this machine is in, "local" for one on it alone.
        slurm: Parameters of submitit as NAME=VALUE with commas. One of the two is given.
        cpus: Processor cores for each task.
        gpus: GPUs for each task.
        folder: For submitit's files.
    """

    ray: str | None
    slurm: str | None
    cpus: int
    gpus: int
    folder: Path


@dataclasses.dataclass(frozen=True)
class _Requeued:
    """A task that Slurm may stop and start again."""

    task: Task

    def __call__(self) -> None:
        self.task()

    def checkpoint(self) -> Any:
        """Return what submitit puts back into the queue when Slurm takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_launcher(ray: str | None, slurm: str | None) -> None:
    """Refuse a launcher that is not installed or whose parameters are wrong, before any work.

    Raises:
        MissingExtra: Ray or submitit is not installed.
        CBAMError: A parameter of submitit is not NAME=VALUE.
    """
    for package, option, value in (("ray", "--ray", ray), ("submitit", "--slurm", slurm)):
        if value is not None and importlib.util.find_spec(package) is None:
            raise MissingExtra(option, "cluster", package)
    slurm_parameters(slurm or "")


def slurm_parameters(text: str) -> dict[str, int | str]:
    """Read the value of `--slurm`.

    Raises:
        CBAMError: A part is not NAME=VALUE.

    >>> slurm_parameters("slurm_partition=gpu, timeout_min=240")
    {'slurm_partition': 'gpu', 'timeout_min': 240}
    """
    found: dict[str, int | str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise CBAMError(f"--slurm takes NAME=VALUE with commas, e.g. timeout_min=240; given {part!r}")
        found[name] = int(value) if value.isdigit() else value
    return found


def launch(tasks: Sequence[Task], cluster: Cluster, progress: Progress, done: Callable[[Task], str]) -> None:
    """Run tasks on a cluster, as many at a time as it has room for.

    Args:
        tasks: What to do.
        cluster: Where.
        progress: Gets a line for each task.
        done: Called here with each task that succeeded; returns the outcome, for the display.

    Raises:
        TasksFailed: Some failed, each with its reason; the others are done.
    """
    start = _on_ray if cluster.ray is not None else _on_slurm
    failed: list[str] = []
    with closing(start(cluster, tasks)) as finished:
        for number, (task, problem) in enumerate(finished, start=1):
            if problem:
                failed.append(f"{task.name}: {problem}")
                progress.note(f"{task.name} failed: {problem}")
            else:
                progress.line(f"{task.name} is done ({number - len(failed)} of {len(tasks)}), {done(task)}")
    if failed:
        raise TasksFailed(
            f"{len(failed)} of {len(tasks)} models failed; the others are kept, and the same command tries these "
            "again.\n  " + "\n  ".join(failed)
        )


def _on_ray(cluster: Cluster, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    import ray

    address = None if cluster.ray == "local" else cluster.ray
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CBAMError(f"--ray {cluster.ray}: {str(error).splitlines()[0]}") from None
    try:
        # If a machine is lost, another one resumes its task from the last epoch.
        remote = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=3)(_call)
        waiting = {remote.remote(task): task for task in tasks}
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=_POLL_SECONDS)
            for reference in ready:
                try:
                    ray.get(reference)
                    yield waiting.pop(reference), ""
                except ray.exceptions.RayError as error:
                    yield waiting.pop(reference), _reason(error)
    finally:
        ray.shutdown()


def _call(task: Task) -> None:
    task()


def _on_slurm(cluster: Cluster, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    import submitit
    from submitit.helpers import as_completed

    parameters = slurm_parameters(cluster.slurm or "")
    name = str(parameters.pop("cluster")) if "cluster" in parameters else None
    try:
        executor = submitit.AutoExecutor(folder=cluster.folder, cluster=name)
        executor.update_parameters(
            name="cbam", cpus_per_task=cluster.cpus, gpus_per_node=cluster.gpus, **parameters
        )
        with executor.batch():
            jobs = [executor.submit(_Requeued(task)) for task in tasks]
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise CBAMError(f"--slurm {cluster.slurm}: {error}") from None
    started = {job.job_id: task for job, task in zip(jobs, tasks, strict=True)}
    try:
        for job in as_completed(jobs, poll_frequency=_POLL_SECONDS):
            problem = job.exception()
            yield started[job.job_id], _reason(problem) if problem else ""
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    likely = [line for line in lines if "Error" in line or "NonFiniteLoss" in line]
    return (likely or lines or [type(error).__name__])[-1]
