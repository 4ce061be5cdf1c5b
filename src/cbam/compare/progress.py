"""How far the run is: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cbam.compare.grid import Cell
from cbam.formatting import counted, duration


class PlainProgress:
    """Writes one line per event; the base of `LiveProgress`, and what log files and CI get.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console):
        self.console = console
        self.cell: Cell | None = None
        self._cells = 0  # of the whole grid
        self._number = 0  # of the present cell in it
        self._epochs = 1
        self._ahead = 0.0  # epochs to train in this call
        self._done = 0.0  # of those
        self._started = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def notice(self, text: str) -> None:
        """Tell the user something that is not an error."""
        self.line(f"note: {text}")

    def phase(self, text: str) -> None:
        """Say what happens next."""
        self.line(text)

    def start(self, grid: Sequence[Cell], done: Sequence[Cell], epochs: int) -> None:
        """Say how much there is to do, and start the clock for the time that remains."""
        self._cells, self._epochs = len(grid), epochs
        self._ahead = float((len(grid) - len(done)) * epochs)
        self._started = time.monotonic()
        kept = f", {len(done)} of them done before" if done else ""
        self.line(f"{counted(len(grid), 'model')} to train for {counted(epochs, 'epoch')} each{kept}")

    def start_cell(self, cell: Cell, number: int) -> None:
        """The training of `cell` starts; it is number `number` (from 1) of the grid."""
        self.cell, self._number = cell, number

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """One step is done; all counted from 0."""
        self._done += 1 / steps

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done; `row` is its line of metrics.jsonl."""
        self._done = float(round(self._done))
        self.line(f"{self._place()}  {epoch_text(row, self._epochs)}  {self.eta()}")

    def end_cell(self, result: dict[str, Any]) -> None:
        """The present cell has its result."""

    def resume_cell(self, epochs_done: int) -> None:
        """The present cell goes on after that many epochs of an earlier call."""
        self._ahead -= epochs_done
        self.line(f"{self._place()}  goes on after epoch {epochs_done}")

    def eta(self) -> str:
        """Return the time that remains, from the pace so far.

        >>> PlainProgress(Console()).eta()
        ''
        """
        if self._done <= 0 or self._done >= self._ahead:
            return ""
        elapsed = time.monotonic() - self._started
        return f"{duration(elapsed / self._done * (self._ahead - self._done))} left"

    def line(self, text: str) -> None:
        """Write one line."""
        self.console.print(Text(text.rstrip()), soft_wrap=True)

    def _place(self) -> str:
        variant, seed = (self.cell.variant, self.cell.seed) if self.cell else ("?", 0)
        return f"[{self._number}/{self._cells}] {variant} seed {seed}"


class LiveProgress(PlainProgress):
    """Two bars at the foot of the terminal: the whole grid, and the epoch at hand; finished models scroll above."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[tail]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._all = self._bars.add_task("all models", tail="", visible=False, total=1.0)
        self._one = self._bars.add_task("", tail="", visible=False, total=1.0)
        self._score = ""

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, text: str) -> None:
        """Show what happens next in place of the bars."""
        self._bars.update(self._all, visible=False)
        self._bars.update(self._one, visible=False)
        self.line(text)

    def start(self, grid: Sequence[Cell], done: Sequence[Cell], epochs: int) -> None:
        """Show the bars."""
        super().start(grid, done, epochs)
        self._bars.update(self._all, total=len(grid) * epochs, completed=len(done) * epochs, visible=True)

    def start_cell(self, cell: Cell, number: int) -> None:
        """Name the cell on its bar."""
        super().start_cell(cell, number)
        self._score = ""
        self._bars.update(self._one, description=escape(self._place()), completed=0, visible=True)

    def resume_cell(self, epochs_done: int) -> None:
        """Count the earlier epochs as done."""
        super().resume_cell(epochs_done)
        self._bars.advance(self._all, epochs_done)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move both bars."""
        super().step(epoch, step, steps, loss)
        self._bars.advance(self._all, 1 / steps)
        self._bars.update(self._all, tail=self.eta())
        tail = f"epoch {epoch + 1}/{self._epochs}  step {step + 1}/{steps}  loss {loss:.3f}{self._score}"
        self._bars.update(self._one, completed=(step + 1) / steps, tail=tail)

    def epoch(self, row: dict[str, Any]) -> None:
        """Keep the accuracy in sight during the next epoch."""
        self._done = float(round(self._done))
        self._score = f"  val {100 * row['val_accuracy']:.2f} %  {row['images_per_s']:.0f} images/s"

    def end_cell(self, result: dict[str, Any]) -> None:
        """Leave one line above the bars."""
        score, took = f"val {100 * result['val_accuracy']:.2f} %", duration(result["seconds"])
        self.line(f"{self._place()}  {score}  {result['parameters']:,} parameters  {took}")


def make_progress(console: Console) -> PlainProgress:
    """Return the display that suits `console`: live where it is a terminal that can move its cursor."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console) if live else PlainProgress(console)


def epoch_text(row: dict[str, Any], epochs: int) -> str:
    """Write one line of metrics.jsonl for people.

    >>> row = {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.84, "lr": 0.09, "images_per_s": 1830.2,
    ...        "data_wait_s": 0.1, "seconds": 5.0}
    >>> epoch_text(row, 10)
    'epoch 2/10  loss 0.500  val 84.00 %  lr 0.09  1830 images/s  waiting for data 2 %  5 s'
    """
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.3f}  val {100 * row['val_accuracy']:.2f} %  "
        f"lr {row['lr']:.2g}  {row['images_per_s']:.0f} images/s  "
        f"waiting for data {100 * row['data_wait_s'] / max(row['seconds'], 1e-9):.0f} %  {duration(row['seconds'])}"
    )
