"""The metrics of a training: its own files, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from cbam.errors import MissingExtra
from cbam.files import write_atomically
from cbam.runs.folder import RunFolder


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


def open_trackers(
    names: Sequence[str], folder: RunFolder, settings: dict[str, Any], step: int
) -> list[GeneralTracker]:
    """Return accelerate's trackers by name: `log(numbers, step)`, and `finish()` at the end.

    Call it on the main process. TensorBoard's files go into the run's folder, where points that an interrupted run
    wrote beyond `step` are hidden; the run at Weights & Biases has the folder's name and is continued under it, and
    WANDB_MODE=offline keeps it for `wandb sync`.

    Args:
        names: "tensorboard", "wandb".
        folder: The run's.
        settings: Of the run.
        step: The next step.
    """
    trackers: list[GeneralTracker] = []
    if "tensorboard" in names:
        trackers.append(TensorBoardTracker("tensorboard", folder.path, purge_step=step))
    if "wandb" in names:
        name = folder.path.resolve().name
        trackers.append(
            WandBTracker("cbam", id=name, name=name, resume="allow", dir=str(folder.path), config=settings)
        )
    for tracker in trackers:
        tracker.start()
    return trackers
