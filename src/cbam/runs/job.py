"""A resumable run of named cells: check everything, do what has no result yet, finish.

Training one network, comparing several and measuring are all runs of cells. A subclass of `Job` defines its cells,
which of them have a result, how one is done, and what follows the last. If it is stopped, the same command resumes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cbam.formatting import counted
from cbam.runs.config import RunConfig
from cbam.runs.environment import describe_environment
from cbam.runs.folder import RunFolder
from cbam.runs.progress import Progress


class Cell(Protocol):
    """One unit of work with a result of its own: a model to train, a case to measure."""

    @property
    def name(self) -> str:
        """A name that no other cell of the run has; its result is stored under it."""


class Processes(Protocol):
    """Processes that work together; `accelerate.Accelerator` is one."""

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes files."""

    def wait_for_everyone(self) -> None:
        """Return when all processes have called it."""


class OneProcess:
    """A run in a single process."""

    is_main_process = True

    def wait_for_everyone(self) -> None:
        """Return at once."""


C = TypeVar("C", bound=Cell)
Outcome = TypeVar("Outcome")


@dataclass(kw_only=True)
class Job(ABC, Generic[C, Outcome]):
    """A run that is ready: everything is checked, and nothing is written yet.

    Attributes:
        config: The options.
        command: What was typed, for `env.json`.
        folder: Where everything goes.
        progress: Shows how far it is.
        processes: Those that work together; all of them call `execute`.
    """

    config: RunConfig
    command: list[str]
    folder: RunFolder
    progress: Progress
    processes: Processes = field(default_factory=OneProcess)

    unit: ClassVar[str] = "cell"
    """What a cell is, for people."""

    @property
    @abstractmethod
    def cells(self) -> Sequence[C]:
        """All cells of the run in their order."""

    @abstractmethod
    def is_done(self, cell: C) -> bool:
        """Whether the folder holds the cell's result."""

    @abstractmethod
    def do(self, cell: C) -> str:
        """Do a cell and store its result; return a short summary for the display."""

    @abstractmethod
    def finish(self, worked: Sequence[C]) -> Outcome:
        """Write what depends on all results; `worked` are the cells of this call. Called on the main process only."""

    def saved(self) -> str:
        """Say what the folder holds of the result, for a user who stopped the run."""
        done = sum(self.is_done(cell) for cell in self.cells)
        return f"{done} of {counted(len(self.cells), self.unit)} {'is' if done == 1 else 'are'} done"

    def settings(self) -> dict[str, Any]:
        """Return what a later call must share, stored as `config.yaml`."""
        return self.config.resolved()

    def environment(self) -> dict[str, Any]:
        """Return machine and software versions for `env.json`."""
        return describe_environment(self.command, "cpu")

    def check(self) -> None:
        """Refuse a folder that holds another run."""
        self.folder.check_settings(self.settings(), type(self.config))

    def open(self) -> None:
        """Write settings and environment; the folder is locked."""
        self.folder.open(self.settings(), self.environment())

    def announce(self, cells: Sequence[C], done: Sequence[C]) -> None:
        """Show how much there is to do."""
        self.progress.start(self.unit, len(cells), len(done))

    def work(self, pending: Sequence[C]) -> None:
        """Do the cells that have no result, one after the other in this process."""
        numbers = {cell.name: number for number, cell in enumerate(self.cells, start=1)}
        for cell in pending:
            self.progress.begin(cell.name, numbers[cell.name])
            self.progress.end(self.do(cell))

    def execute(self) -> Outcome | None:
        """Do what has no result yet, and finish.

        Returns:
            What `finish` gives; None on all processes but the main one.

        Raises:
            FolderInUse: Another run works in the folder.
            FolderLost: The folder was deleted meanwhile.
            CBAMError: The folder now holds another run.
        """
        if not self.processes.is_main_process:
            self.processes.wait_for_everyone()
            self._work()
            return None
        if aside := self.folder.make_room():
            self.progress.note(f"the run in {self.folder.path} is kept as {aside}")
        with self.folder.locked():
            # Again: another process may have written since it was checked.
            self.check()
            self.open()
            self.processes.wait_for_everyone()
            worked = self._work()
            self.folder.check_kept()
            return self.finish(worked)

    def _work(self) -> list[C]:
        cells = list(self.cells)
        done = [cell for cell in cells if self.is_done(cell)]
        self.processes.wait_for_everyone()  # all have looked before the first result is written
        self.announce(cells, done)
        names = {cell.name for cell in done}
        pending = [cell for cell in cells if cell.name not in names]
        self.work(pending)
        return pending
