"""How far the run is: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.status import Status
from rich.text import Text

from cbam.bench.cells import Cell
from cbam.formatting import duration


class Progress:
    """Tells on a console what is being measured.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console):
        self.console = console
        self._live = (
            Status("", console=console) if console.is_terminal and not console.is_dumb_terminal else None
        )
        self._cells = self._number = self._before = 0
        self._compiling = self._compiled = 0
        self._started = time.monotonic()
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def start(self, cells: int, done: int) -> None:
        """Say how much there is to do."""
        self._cells, self._number, self._before = cells, done, done
        kept = f", {done} of them done before" if done else ""
        self._line(f"{cells} measurements{kept}")
        if done == cells:
            self.note("nothing is left to measure; --restart measures everything anew")

    def compiling(self, cells: int) -> None:
        """The rivals are being compiled."""
        self._compiling = cells
        self._show("compiling the rivals, so that no time contains it")

    def compiled(self, cell: Cell) -> None:
        """What `cell` needs is compiled."""
        with self._lock:
            self._compiled += 1
            self._show(f"compiling {self._compiled}/{self._compiling}: {cell.mode} {cell.memory_format} done")

    def begin(self, cell: Cell) -> None:
        """The measurement of `cell` begins."""
        if self._number == self._before:
            self._started = time.monotonic()
        if self._live:
            self._show(f"{self._place(cell)}{self._left()}")

    def end(self, cell: Cell, seconds: float) -> None:
        """The measurement of `cell` is done."""
        self._number += 1
        if not self._live:
            self._line(f"[{self._number}/{self._cells}] {cell.name}  {seconds:.1f} s")

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self._told:
            self._told.add(text)
            self._line(f"note: {text}")

    def _place(self, cell: Cell) -> str:
        return f"[{self._number + 1}/{self._cells}] {cell.name}"

    def _left(self) -> str:
        done = self._number - self._before
        if not done:
            return ""
        pace = (time.monotonic() - self._started) / done
        return f"  about {duration(pace * (self._cells - self._number))} left"

    def _show(self, text: str) -> None:
        if self._live:
            self._live.update(Text(text, overflow="ellipsis", no_wrap=True))
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
