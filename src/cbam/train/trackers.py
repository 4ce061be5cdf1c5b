"""Where the numbers of a training go beside its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cbam.errors import MissingExtra
from cbam.files import write_atomically
from cbam.runs.folder import RunFolder


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Keep numbers."""

    def close(self) -> None:
        """Write what is waiting."""


class Metrics:
    """`metrics.jsonl`, a row an epoch, and the same as `metrics.csv` for spreadsheets.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def go_on_after(self, epochs: int) -> None:
        """Drop the rows of later epochs: they will be made again."""
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


class TensorBoard:
    """Writes event files for `tensorboard --logdir`.

    Args:
        folder: For the files.
        step: The first step that is to come: later ones in files of an interrupted run are hidden.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("--track tensorboard", "track", "tensorboard") from None
        self.writer = SummaryWriter(str(folder), purge_step=step)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Keep numbers."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is waiting."""
        self.writer.close()


class WandB:
    """Sends to Weights & Biases, or keeps for `wandb sync` where WANDB_MODE=offline.

    Args:
        folder: For its files.
        name: Of the run; one that was interrupted goes on under the same.
        settings: Shown beside the run.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise MissingExtra("--track wandb", "track", "wandb") from None
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project="cbam",
            id=name.replace("/", "-"),
            name=name,
            resume="allow",
            dir=str(folder),
            config=settings,
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Keep numbers."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Write what is waiting."""
        self.run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before any work.

    Raises:
        MissingExtra: It is not there.
    """
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"--track {name}", "track", name)


def open_trackers(
    names: Sequence[str], folder: RunFolder, settings: dict[str, Any], step: int
) -> list[Tracker]:
    """Return the trackers by name.

    Args:
        names: "tensorboard", "wandb".
        folder: The run's.
        settings: Of the run.
        step: The first step that is to come.
    """
    made: list[Tracker] = []
    if "tensorboard" in names:
        made.append(TensorBoard(folder.path / "tensorboard", step))
    if "wandb" in names:
        made.append(WandB(folder.path, folder.path.resolve().name, settings))
    return made
