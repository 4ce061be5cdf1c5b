"""Run a job at a terminal: show its progress and log, and after an interruption how to resume it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cbam.runs.config import RunConfig
from cbam.runs.job import Job
from cbam.runs.progress import Progress

Options = TypeVar("Options", bound=RunConfig)
Outcome = TypeVar("Outcome")


def run_job(
    prepare: Callable[[Options, list[str], Progress], Job[Any, Outcome]],
    config: Options,
    command: Sequence[str],
    *,
    leave_out: Sequence[str] = (),
) -> Outcome | None:
    """Prepare a job and execute it.

    Args:
        prepare: Checks the options and returns the job.
        config: The options.
        command: What was typed, for `env.json`, and for the advice after an interruption.
        leave_out: Options that the advised command must not repeat, such as --restart.

    Returns:
        The outcome; None on all processes but the main one.
    """
    again = shlex.join(word for word in command if word not in leave_out)
    with Progress() as progress:
        log_to(progress.note)
        try:
            return prepare(config, list(command), progress).execute()
        except KeyboardInterrupt as stop:
            if not config.folder.is_dir():
                raise
            raise type(stop)(
                f"stopped. Finished work is kept in {config.folder}. To resume, type the same again:\n  {again}"
            ) from None


def log_to(note: Callable[[str], None]) -> None:
    """Show the library's log messages, such as a damaged file or loaded weights."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    logger = logging.getLogger("cbam")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
