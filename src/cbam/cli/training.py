"""What `cbam train` shows: a bar on a terminal, a line an epoch everywhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cbam.formatting import duration
from cbam.train.run import Told


class Display:
    """Tells how far a training is.

    Args:
        console: Where to write.
        epochs: Of the whole training.
    """

    def __init__(self, console: Console, epochs: int):
        self.console = console
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[tail]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", tail="", visible=False, total=1.0)
        self._mark = (time.monotonic(), -1)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    @property
    def told(self) -> Told:
        """What the training calls."""
        return Told(line=self.line, step=self.step, epoch=self.epoch)

    def notice(self, text: str) -> None:
        """Tell the user something that is not an error."""
        self.line(f"note: {text}")

    def line(self, text: str) -> None:
        """Write one line."""
        self.console.print(Text(text.rstrip()), soft_wrap=True)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """One step is done; all counted from 0."""
        started, first = self._mark
        if first < 0 or step < first:
            self._mark = started, first = time.monotonic(), step
        done = step - first
        pace = f"  {duration((time.monotonic() - started) / done * (steps - step - 1))} left" if done else ""
        self.bar.update(
            self.task,
            visible=True,
            description=f"epoch {epoch + 1}/{self.epochs}",
            completed=(step + 1) / steps,
            tail=f"step {step + 1}/{steps}  loss {loss:.3f}{pace}",
        )

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done; `row` is its line of metrics.jsonl."""
        ema = f"  average {row['val_accuracy_ema']:.2%}" if "val_accuracy_ema" in row else ""
        self.line(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.3f}  top-1 {row['val_accuracy']:.2%}  "
            f"top-5 {row['val_top5']:.2%}{ema}  lr {row['lr']:.2g}  {row['images_per_s']:,.0f} images/s  "
            f"waited {row['data_wait_s']:.1f} of {row['seconds']:.1f} s for images"
        )
