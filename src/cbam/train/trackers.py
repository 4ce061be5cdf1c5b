"""The metrics of a training: its own files, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from cbam.errors import MissingExtra
from cbam.files import write_atomically
from cbam.runs.folder import RunFolder

_STEPS_BETWEEN_LOGS = 50


class Metrics:
    """`metrics.jsonl`, one row per epoch, and the same as `metrics.csv` for spreadsheets.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def go_on_after(self, epochs: int) -> None:
        """Drop the rows of later epochs: they will be written again."""
        kept = [row for row in self.folder.metrics.read() if row["epoch"] <= epochs]
        self.folder.metrics.replace(kept)

    def add(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch."""
        self.folder.metrics.append(row)
        rows = self.folder.metrics.read()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder.path / "metrics.csv", text.getvalue())


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before any work.

    Raises:
        MissingExtra: It is not installed.
    """
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"--track {name}", "track", name)


class Tracking:
    """The trackers of one training, opened with its first step.

    Args:
        names: Of the trackers; none on processes but the main one.
        folder: Where TensorBoard's files go: of the run, or of one of its cells.
        settings: Of the run.
        steps: Of an epoch.
        run: The run's folder, if `folder` is that of a cell.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        settings: dict[str, Any],
        steps: int,
        run: Path | None = None,
    ):
        self._names, self._folder, self._settings, self._steps, self._run = (
            names,
            folder,
            settings,
            steps,
            run,
        )
        self._open: list[GeneralTracker] = []

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Log the loss after every so many steps; see `cbam.train.loop.Callbacks`."""
        done = epoch * steps + step
        if not self._open:
            self._open = open_trackers(self._names, self._folder, self._settings, done, self._run)
        if done % _STEPS_BETWEEN_LOGS == 0:
            for tracker in self._open:
                tracker.log({"step/loss": loss}, done)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the row of an epoch."""
        for tracker in self._open:
            numbers = {f"epoch/{name}": float(value) for name, value in row.items() if name != "epoch"}
            tracker.log(numbers, row["epoch"] * self._steps)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._open:
            tracker.finish()


def open_trackers(
    names: Sequence[str], folder: Path, settings: dict[str, Any], step: int, run: Path | None = None
) -> list[GeneralTracker]:
    """Return accelerate's trackers by name: `log(numbers, step)`, and `finish()` at the end.

    Call it on the main process. TensorBoard's files go into the folder, where points that an interrupted run wrote
    beyond `step` are hidden; the run at Weights & Biases has the folder's name and is continued under it, and
    WANDB_MODE=offline keeps it for `wandb sync`. The cells of one run are a group there.

    Args:
        names: "tensorboard", "wandb".
        folder: Of the run, or of one of its cells.
        settings: Of the run.
        step: The next step.
        run: The run's folder, if `folder` is that of a cell.
    """
    trackers: list[GeneralTracker] = []
    if "tensorboard" in names:
        trackers.append(TensorBoardTracker("tensorboard", folder, purge_step=step))
    if "wandb" in names:
        name, group = folder.resolve().name, {}
        if run is not None:
            group = {"group": run.resolve().name}
            name = f"{run.resolve().name}-{name}"
        trackers.append(
            WandBTracker(
                "cbam", id=name, name=name, resume="allow", dir=str(folder), config=settings, **group
            )
        )
    for tracker in trackers:
        tracker.start()
    return trackers
