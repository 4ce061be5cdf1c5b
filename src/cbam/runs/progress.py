"""The one display of every long run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from cbam.formatting import counted, duration

Count = Callable[[int, int], None]
_active: list[Progress] = []


class Progress:
    """Shows how far a run of one or more cells is, and how much time remains.

    On a terminal, bars at the foot show the whole run and the present cell; finished cells scroll above them. Elsewhere
    every event is a line without control characters. Of several processes (torchrun, accelerate launch) only the first
    one writes.

    Args:
        console: Where to write; standard error by default.

    >>> with Progress(Console()) as progress:
    ...     progress.start("model", 2)
    ...     progress.begin("none-seed0")
    ...     progress.end("val 90.00 %")
    2 models
    [1/2] none-seed0  val 90.00 %
    """

    def __init__(self, console: Console | None = None):
        quiet = os.environ.get("RANK", "0") != "0"
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        live = self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet
        self._bars = _make_bars(self.console) if live else None
        if self._bars:
            self._all = self._bars.add_task("all", tail="", visible=False, total=1.0)
            self._one = self._bars.add_task("", tail="", visible=False, total=1.0)
        self._cells = self._number = 0
        self._name = self._kept = ""
        self._work = 1.0  # of one cell
        self._before = 0.0  # work that earlier calls did, cells and parts of cells
        self._finished = 0.0  # work in the cells before the present one, that of earlier calls included
        self._at = 0.0  # work in the present cell
        self._started = time.monotonic()
        self._notes: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        _active.append(self)
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
        _active.remove(self)

    def line(self, text: str) -> None:
        """Write one line."""
        self.console.print(Text(text.rstrip()), soft_wrap=True)

    def note(self, text: str) -> None:
        """Show something that is not an error, once."""
        with self._lock:
            known = text in self._notes
            self._notes.add(text)
        if not known:
            self.line(f"note: {text}")

    def phase(self, text: str) -> None:
        """Show what happens between or after the cells; the bars disappear until the next cell begins."""
        self._show(visible=False)
        self.line(text)

    def start(self, what: str, cells: int, done: int = 0, *, work: float = 1.0, each: str = "") -> None:
        """Show how much there is to do, and start the clock for the remaining time.

        Args:
            what: One of the cells, such as "model".
            cells: Of the whole run.
            done: Those with a result already.
            work: In a cell; `at` and `resume` count in the same unit, such as epochs.
            each: What to do with each of them, such as "to train for 5 epochs each".
        """
        self._cells, self._work, self._number = cells, work, done
        self._before = self._finished = done * work
        self._at, self._started = 0.0, time.monotonic()
        kept = (f", {done} of them" if cells > 1 else ",") + " done before" if done else ""
        self.line(" ".join(filter(None, [counted(cells, what), each])) + kept)
        if self._bars:
            self._bars.update(self._all, description=f"all {what}s", total=cells * work)

    def begin(self, name: str, number: int | None = None) -> None:
        """Begin a cell.

        Args:
            name: The cell's.
            number: Its number in the whole run, from 1; by default one more than the last.
        """
        self._name, self._number = name, number or self._number + 1
        self._kept, self._at = "", 0.0
        self._show(visible=True)

    def resume(self, done: float, text: str = "") -> None:
        """Count what an earlier call did in the present cell."""
        self._before += done
        self._at = done
        if text:
            self.line(f"{self._prefix()}{text}")

    def at(self, done: float, text: str = "") -> None:
        """Move the bars.

        Args:
            done: Work done in the present cell, out of `work`.
            text: Shown next to its bar.
        """
        self._at = done
        if not self._bars:
            return
        tail = [text, self._kept] if self._cells > 1 else [text, self.eta()]
        self._bars.update(self._all, completed=self._finished + done, tail=self.eta())
        self._bars.update(self._one, completed=done / self._work, tail=escape("  ".join(filter(None, tail))))

    def report(self, text: str, short: str = "") -> None:
        """Report on the present cell: a line, but of many cells on a terminal only `short` next to the bar."""
        if self._bars and self._cells > 1:
            self._kept = short
        else:
            self.line("  ".join(filter(None, [f"{self._prefix()}{text}", self.eta()])))

    def end(self, text: str = "") -> None:
        """End the present cell; of several cells, leave a line."""
        self._finished += self._work
        self._at = 0.0
        if self._cells > 1:
            self.line(f"{self._prefix()}{text}")

    def eta(self) -> str:
        """Return the remaining time at the pace so far; empty before there is one.

        >>> Progress(Console()).eta()
        ''
        """
        done = self._finished + self._at - self._before
        left = self._cells * self._work - self._finished - self._at
        if done <= 0 or left <= 0:
            return ""
        return f"{duration((time.monotonic() - self._started) / done * left)} left"

    def _prefix(self) -> str:
        return f"[{self._number}/{self._cells}] {self._name}  " if self._cells > 1 else ""

    def _show(self, *, visible: bool) -> None:
        if self._bars:
            several = self._cells > 1
            self._bars.update(self._all, completed=self._finished, visible=visible and several)
            name = escape(self._prefix().rstrip() or self._name)
            self._bars.update(self._one, description=name, completed=0, tail="", visible=visible)

    @contextmanager
    def counting(self, what: str) -> Iterator[Count]:
        """Give a function that shows "done of total" on a terminal while the block runs, and nothing elsewhere.

        Args:
            what: The job, such as "checking images".
        """
        if not self._bars:
            yield lambda done, total: None
            return
        bars, task = self._bars, self._bars.add_task(escape(what), tail="", visible=False)

        def count(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, tail=f"{done:,} of {total:,}", visible=True)

        try:
            yield count
        finally:
            bars.remove_task(task)


@contextmanager
def counting(what: str) -> Iterator[Count]:
    """Give `Progress.counting` of the active display, or of a new one for this block."""
    if _active:
        with _active[-1].counting(what) as count:
            yield count
    else:
        with Progress() as progress, progress.counting(what) as count:
            yield count


def _make_bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[tail]}"),
        console=console,
        refresh_per_second=4,
        transient=True,
    )
