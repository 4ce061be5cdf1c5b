"""Run a job at a terminal: show its progress and log, and after an interruption what is saved and how to resume it."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cbam.runs.config import RunConfig
from cbam.runs.job import Job
from cbam.runs.numbered import with_folder
from cbam.runs.progress import Progress
from cbam.train.stopping import Preempted

Options = TypeVar("Options", bound=RunConfig)
Outcome = TypeVar("Outcome")
_ONCE = ("--restart", "--overwrite", "--no-overwrite")  # typed again, they would drop what is to be resumed


def placed(config: Options) -> Options:
    """Return the options with the folder of their run, and say so where it is not the usual one."""
    found = with_folder(config)
    if found.folder != config.folder and not found.folder.exists():
        Progress().note(f"{config.folder} holds another run, so this one goes to {found.folder}")
    return found


def run_job(
    prepare: Callable[[Options, list[str], Progress], Job[Any, Outcome]],
    config: Options,
    command: Sequence[str],
) -> Outcome | None:
    """Prepare a job and execute it.

    Args:
        prepare: Checks the options and returns the job.
        config: The options.
        command: What was typed, for `env.json`, and for the advice after an interruption.

    Returns:
        The outcome; None on all processes but the main one.
    """
    job: Job[Any, Outcome] | None = None
    with Progress() as progress:
        log_to(progress.note)
        try:
            job = prepare(config, list(command), progress)
            return job.execute()
        except Preempted as stop:
            raise Preempted(f"{stop} in {config.folder}.{_resume(command)}") from None
        except KeyboardInterrupt as stop:
            if job is None or not (config.folder / "config.yaml").exists():
                raise type(stop)(str(stop) or "stopped before any work") from None
            said = f"{stop} in" if str(stop) else f"stopped; {job.saved()}. The run is in"
            raise type(stop)(f"{said} {config.folder}.{_resume(command)}") from None


def _resume(command: Sequence[str]) -> str:
    """Say what to type to go on: the command itself, behind torchrun where that has started it."""
    words = [word for word in command if word not in _ONCE]
    here = os.environ.get
    if here("TORCHELASTIC_RUN_ID") and here("GROUP_WORLD_SIZE") == "1":
        words = ["torchrun", f"--nproc-per-node={here('LOCAL_WORLD_SIZE')}", "-m", *words]
    return f" To resume, type the same again:\n  {shlex.join(words)}"


def log_to(note: Callable[[str], None]) -> None:
    """Show the library's log messages, such as a damaged file or loaded weights."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    logger = logging.getLogger("cbam")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
