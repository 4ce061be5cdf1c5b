"""One cell of the grid: from its first weights to its result, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from cbam.checkpoints import tensors_file
from cbam.compare.config import CompareConfig
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, build_cell, count_parameters
from cbam.compare.progress import PlainProgress
from cbam.data import ImageData
from cbam.runs.environment import now
from cbam.train.checkpoints import Checkpoints
from cbam.train.loop import Trained, Watchers, train_model
from cbam.train.nonfinite import NonFiniteLoss


@dataclass(frozen=True)
class Job:
    """A comparison whose every input was looked at: what can be refused has been, and nothing was written yet."""

    config: CompareConfig
    command: list[str]
    settings: dict[str, Any]
    folder: CompareFolder
    data: ImageData
    parameters: dict[str, int]
    accelerator: Accelerator


def train_one(job: Job, cell: Cell, progress: PlainProgress) -> None:
    """Train the network of a cell, or go on with it; its weights and its result go into the run's folder.

    Args:
        job: Of `prepare`.
        cell: One without a result.
        progress: Is told how far it is.

    Raises:
        NonFiniteLoss: The training broke down; the message names the cell.
    """
    path = job.folder.cell(cell)
    main = job.accelerator.is_main_process

    def on_epoch(row: dict[str, Any]) -> None:
        row = {"cell": cell.name, "variant": cell.variant, "seed": cell.seed, **row}
        if main:
            job.folder.append_metrics(row)
        progress.epoch(row)

    model = build_cell(cell, job.config, job.data)
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        trained = train_model(
            model,
            job.data,
            job.config.train,
            seed=cell.seed,
            checkpoints=checkpoints,
            fine_tuning=job.config.fine_tuning,
            accelerator=job.accelerator,
            watchers=Watchers(
                step=progress.step, epoch=on_epoch, resume=lambda epochs, steps: progress.resume_cell(epochs)
            ),
        )
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"cell {cell.name}: {error}") from None
    result = _result(cell, trained, job.config.train.epochs)
    if main:
        _write_weights(path / "model.safetensors", trained.model, job, cell)
        if trained.ema is not None:
            _write_weights(path / "model_ema.safetensors", trained.ema, job, cell)
        job.folder.write_json(f"cells/{cell.name}/result.json", result)
        checkpoints.clear()
    progress.end_cell(result)


def _result(cell: Cell, trained: Trained, epochs: int) -> dict[str, Any]:
    scores = trained.evaluation
    ema = {"val_accuracy_ema": trained.ema_evaluation.accuracy} if trained.ema_evaluation else {}
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "epochs": epochs,
        "val_accuracy": scores.accuracy,
        **ema,
        "val_loss": scores.loss,
        "per_class_accuracy": scores.per_class_accuracy,
        "confusion": scores.confusion.tolist(),
        "parameters": count_parameters(trained.model),
        "seconds": trained.seconds,
        "finished": now(),
    }


def _write_weights(file: Path, model: nn.Module, job: Job, cell: Cell) -> None:
    about = {
        "model": job.config.model,
        "attention": cell.variant,
        "seed": str(cell.seed),
        "classes": json.dumps(job.data.classes),
        "input_size": json.dumps(job.data.input_size),
        "mean": json.dumps(job.data.mean),
        "std": json.dumps(job.data.std),
    }
    tensors_file.write(file, model.state_dict(), about)
