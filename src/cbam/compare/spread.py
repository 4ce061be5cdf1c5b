"""The cells of a grid on other machines: a Ray cluster, or Slurm through submitit.

Every cell is trained by a process of its own, which writes into the run's folder as this one would; all machines see
that folder. What is finished stays finished: the same command goes on with the rest, here or there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from rich.console import Console

from cbam.compare.config import CompareConfig, resolved
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.progress import PlainProgress
from cbam.compare.training import Job, train_one
from cbam.errors import CBAMError, MissingExtra
from cbam.runs.options import absolute_data
from cbam.train.device import make_accelerator

logger = logging.getLogger(__name__)

ROWS = "metrics.jsonl"
_POLL_SECONDS = 0.5


class CellsFailed(CBAMError):
    """Some cells could not be trained; the others are kept."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """One cell, to be trained by whichever process calls this.

    Attributes:
        config: Of the comparison, with paths that hold on every machine.
        cell: Which one.
    """

    config: CompareConfig
    cell: Cell

    def __call__(self) -> str:
        """Train the cell unless it is done, and return its name."""
        folder = CompareFolder(self.config.folder)
        folder.metrics = folder.cell(self.cell) / ROWS  # many machines cannot append to one file
        if folder.result(self.cell) is None:
            folder.cell(self.cell).mkdir(parents=True, exist_ok=True)
            folder.mend_metrics()
            accelerator = make_accelerator(self.config.train)
            job = Job(self.config, [], resolved(self.config), folder, self.config.load(), {}, accelerator)
            train_one(job, self.cell, PlainProgress(Console(stderr=True, highlight=False)))
        return self.cell.name

    def checkpoint(self) -> Any:
        """Return what submitit puts back into the queue when Slurm takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_spread(config: CompareConfig) -> None:
    """Refuse what is not installed or not written as it should be, before any work.

    Raises:
        MissingExtra: Ray or submitit is not there.
        CBAMError: A parameter of submitit is not NAME=VALUE.
    """
    for package, wanted in (("ray", config.ray), ("submitit", config.slurm)):
        if wanted is not None and importlib.util.find_spec(package) is None:
            raise MissingExtra(f"--{'ray' if package == 'ray' else 'slurm'}", "spread", package)
    slurm_parameters(config.slurm or "")


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


def train_elsewhere(job: Job, cells: Sequence[Cell], progress: PlainProgress) -> None:
    """Train cells on a cluster, as many at a time as it has room for.

    Args:
        job: Of the comparison; its `config` says where.
        cells: Those without a result.
        progress: Is told which are done.

    Raises:
        CellsFailed: Some failed, each with its reason; the others are done.
    """
    config = anywhere(job.config)
    start = _on_ray if config.ray is not None else _on_slurm
    failed, done = [], 0
    with closing(start(config, [Task(config, cell) for cell in cells])) as finished:
        for cell, problem in finished:
            if problem:
                failed.append(f"{cell.name}: {problem}")
                progress.notice(f"{cell.name} failed: {problem}")
                continue
            done += 1
            absorb_metrics(job.folder, [cell])
            result = job.folder.result(cell) or {}
            accuracy = f", validation accuracy {result['val_accuracy']:.2%}" if result else ""
            progress.line(f"{cell.name} is done ({done} of {len(cells)}){accuracy}")
    if failed:
        raise CellsFailed(
            f"{len(failed)} of {len(cells)} models failed; the others are kept, and the same command tries these "
            "again.\n  " + "\n  ".join(failed)
        )


def anywhere(config: CompareConfig) -> CompareConfig:
    """Return the configuration with absolute paths, for processes that start in another folder.

    >>> anywhere(CompareConfig(data="digits")).folder.is_absolute()
    True
    """
    return dataclasses.replace(
        config,
        output=config.folder.resolve(),
        data=absolute_data(config.data),
        weights=config.weights.resolve() if config.weights else None,
    )


def absorb_metrics(folder: CompareFolder, cells: Sequence[Cell]) -> None:
    """Move the rows of finished cells from the files of their own into the run's.

    Args:
        folder: The run's.
        cells: Those without rows of their own are passed over.
    """
    for cell in cells:
        own = CompareFolder(folder.path)
        own.metrics = folder.cell(cell) / ROWS
        if own.metrics.exists() and folder.result(cell) is not None:
            known = [row for row in folder.rows() if row["cell"] != cell.name]
            folder.replace_metrics([*known, *own.rows()])
            own.metrics.unlink()


def _on_ray(config: CompareConfig, tasks: Sequence[Task]) -> Generator[tuple[Cell, str], None, None]:
    import ray

    address = None if config.ray == "local" else config.ray
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CBAMError(f"--ray {config.ray}: {str(error).splitlines()[0]}") from None
    try:
        # A machine that goes away takes a cell with it: another one goes on from its last epoch.
        remote = ray.remote(num_cpus=config.model_cpus, num_gpus=config.model_gpus, max_retries=3)(_call)
        waiting = {remote.remote(task): task.cell for task in tasks}
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


def _call(task: Task) -> str:
    return task()


def _on_slurm(config: CompareConfig, tasks: Sequence[Task]) -> Generator[tuple[Cell, str], None, None]:
    import submitit
    from submitit.helpers import as_completed

    parameters = slurm_parameters(config.slurm or "")
    cluster = str(parameters.pop("cluster")) if "cluster" in parameters else None
    try:
        executor = submitit.AutoExecutor(folder=config.folder / "slurm", cluster=cluster)
        executor.update_parameters(
            name="cbam", cpus_per_task=config.model_cpus, gpus_per_node=config.model_gpus, **parameters
        )
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise CBAMError(f"--slurm {config.slurm}: {error}") from None
    cells = {job.job_id: task.cell for job, task in zip(jobs, tasks, strict=True)}
    try:
        for job in as_completed(jobs, poll_frequency=_POLL_SECONDS):
            problem = job.exception()
            yield cells[job.job_id], _reason(problem) if problem else ""
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "NonFiniteLoss" in line]
    return (told or lines or [type(error).__name__])[-1]
