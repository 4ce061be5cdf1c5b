"""The state of a training after a finished step, as files from which it resumes bit for bit (on a CPU).

No generator's state is in it: every step is seeded by (seed, epoch, step), see `seeding`. Nor is the schedule's: it is
a function of the number of steps. Tensors, numbers and strings only, so `torch.load(weights_only=True)` reads it. All
tensors are whole, however the processes had divided them, so any number of processes can resume.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cbam.checkpoints.switches import as_header, switches_of
from cbam.errors import CBAMError

FORMAT = 2
MODEL, EMA, TRAINING = "model.safetensors", "ema.safetensors", "training.pt"


@dataclass
class Position:
    """How far a training is, and its counts in the unfinished epoch.

    Attributes:
        epoch: epochs finished.
        step: steps done in the epoch after those.
        loss_sum: of this epoch, over images.
        correct: images of this epoch whose class was predicted.
        seen: images of this epoch.
        epoch_seconds: spent on this epoch.
        seconds: spent on everything, interruptions left out.
        best_epoch: epoch, from 1, with the highest accuracy so far; 0 before the first validation.
        best_accuracy: its accuracy, 0..1.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = -1.0


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with whole tensors on the CPU, contiguous; all processes have to call it.

    Args:
        model: Bare, or sharded by FSDP2.

    >>> sorted(whole_state(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    return {name: _whole(value).contiguous() for name, value in model.state_dict().items()}


def as_files(
    position: Position, model: nn.Module, optimizer: Any, ema: nn.Module | None, scaler: Any
) -> dict[str, bytes]:
    """Return the files of a checkpoint; all processes have to call it.

    Args:
        position: How far the training is.
        model: Bare, or sharded by FSDP2.
        optimizer: Of the model's parameters.
        ema: The averaged model, where there is one.
        scaler: The gradient scaler of float16, where there is one.
    """
    buffer = io.BytesIO()
    state = {
        "format": FORMAT,
        "position": asdict(position),
        "optimizer": _portable(optimizer.state_dict()),
        "scaler": scaler.state_dict() if scaler else None,
    }
    torch.save(state, buffer)
    files = {MODEL: _weights(model), TRAINING: buffer.getvalue()}
    if ema is not None:
        files[EMA] = _weights(ema)
    return files


def _weights(model: nn.Module) -> bytes:
    return to_safetensors(_unshared(whole_state(model)), as_header(switches_of(model)))


def restore(folder: Path, model: nn.Module, optimizer: Any, ema: nn.Module | None, scaler: Any) -> Position:
    """Load the files of `as_files` into the given objects.

    Args:
        folder: A checkpoint whose checksums were verified.
        model: Of the same names and shapes; bare, or sharded by FSDP2.
        optimizer: Of the model's parameters.
        ema: The averaged model, where there is one.
        scaler: The gradient scaler of float16, where there is one.

    Raises:
        CBAMError: The checkpoint is of another model, or of another version of this library.
    """
    training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    if training.get("format") != FORMAT:
        raise _other(folder, f"format {training.get('format')}, expected {FORMAT}")
    _load(folder / MODEL, model)
    if ema is not None:
        _load(folder / EMA, ema)
    try:
        optimizer.load_state_dict(_sharded_like(training["optimizer"], optimizer))
    except (ValueError, KeyError, IndexError) as error:
        raise _other(folder, str(error)) from None
    if scaler:
        scaler.load_state_dict(training["scaler"])
    return _position(training["position"])


def _position(stored: dict[str, Any]) -> Position:
    # Checkpoints of the first alpha say `hits`.
    return Position(**{"correct" if name == "hits" else name: value for name, value in stored.items()})


def _load(file: Path, model: nn.Module) -> None:
    if not file.exists():
        raise _other(file.parent, f"it has no {file.name}")
    saved, own = load_file(file), model.state_dict()
    if {name: value.shape for name, value in saved.items()} != {n: v.shape for n, v in own.items()}:
        raise _other(file.parent, "its weights have other names or shapes than the model")
    model.load_state_dict({name: _sharded(value, own[name]) for name, value in saved.items()})


def _other(folder: Path, why: str) -> CBAMError:
    return CBAMError(
        f"checkpoint {folder} does not fit this training ({why}). Give another --output, or delete the checkpoint"
    )


def _whole(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _portable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _whole(value)
    if isinstance(value, dict):
        return {key: _portable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_portable(each) for each in value)
    return value


def _sharded(value: Tensor, like: Tensor) -> Tensor:
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def _sharded_like(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Divide moments as their parameters are divided."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                moments[name] = _sharded(value, parameters[index])
    return state


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses two names for one memory; a module that is used twice has them.
    seen: set[int] = set()
    for name, value in state.items():
        if value.numel() and value.data_ptr() in seen:
            state[name] = value.clone()
        seen.add(value.data_ptr())
    return state
