"""Read an untrusted file of weights: sizes, names and types first, bytes last.

Nothing is executed: pickles go through `torch.load(weights_only=True)`, after a first pass in which tensors have a
shape but no memory. The claims of a file are compared with its size before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam.checkpoints import pickled, tensors_file
from cbam.errors import CBAMError
from cbam.files import checked_path

MOST_BYTES = 8 * 2**30
MOST_TENSORS = 100_000
LONGEST_NAME = 1_000
# torch's message for a class or function that is not allowed in a file of weights.
_CALLED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


@dataclass(frozen=True)
class Content:
    """The content of a file, before its tensors are read.

    Args:
        name: of the file, for messages.
        tree: names to tensors without data, or to mappings of such.
        metadata: of safetensors files.
        read: returns the same tree with data.
    """

    name: str
    tree: Mapping[str, Any]
    read: Callable[[], Mapping[str, Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)


def look_at(source: str | Path | Mapping[str, Any], most_bytes: int = MOST_BYTES) -> Content:
    """Return the content of a file or of a dictionary in memory; tensors have shapes and types, but no data yet.

    Args:
        source: a .safetensors file, a file of `torch.save`, a folder with model.safetensors or a run's (its best
            weights), or a state dict.
        most_bytes: refuse larger files.

    Raises:
        CBAMError: no such file; too large; truncated or damaged; a pickle with anything but tensors, numbers, strings
            and containers; tensors that claim more bytes than the file has.

    >>> look_at({"fc.weight": torch.zeros(2, 3)}).tree["fc.weight"].shape
    torch.Size([2, 3])
    """
    if isinstance(source, Mapping):
        return Content("the given state dict", source, lambda: source)
    if not isinstance(source, (str, Path)):
        raise CBAMError(
            f"source expects a path to a file of weights or a state dict, got {type(source).__name__}."
        )
    path = _file(checked_path(source))
    size = path.stat().st_size
    if size > most_bytes:
        raise CBAMError(f"{str(path)!r} has {size:,} bytes, more than the {most_bytes:,} that are allowed.")
    reader = tensors_file if tensors_file.claims(path) else pickled
    try:
        tree, metadata = reader.look(path, size)
    except CBAMError:
        raise
    except Exception as error:  # damaged files raise nearly every type in torch, zipfile and pickle
        raise cannot_read(path, error) from error
    return Content(str(path), tree, lambda: _read(reader, path), metadata)


def cannot_read(path: Path, error: Exception) -> CBAMError:
    """Return the error for a file that is damaged or of another kind than its name says."""
    called = _CALLED.search(str(error))
    advice = ""
    if called and called[1].startswith("ultralytics."):
        advice = f" Of a YOLO pass the state dict: ultralytics.YOLO({str(path)!r}).model.state_dict()."
    elif called:
        advice = " If it is a model, open it with the program that saved it, and pass model.state_dict()."
    return CBAMError(
        f"cannot read {str(path)!r} as weights ({_reason(error)}). It must be a .safetensors file"
        f" or a torch.save'd state dict of tensors (not a pickled model); nothing in it was executed.{advice}"
    )


def _reason(error: Exception) -> str:
    """Return what is wrong with a file, without torch's advice to read it with weights_only=False."""
    text = str(error)
    if called := _CALLED.search(text):
        name = "".join(letter for letter in called[1] if letter.isprintable())[:100]
        return f"it calls code, {name}; a file of weights holds data only"
    if "Weights only load failed" in text:  # the advice, then this text or an empty line, then the reason
        text = text.partition("WeightsUnpickler error: ")[2] or text.partition("\n\n")[2]
    reason = (text.strip().splitlines() or ["no reason given"])[0][:200]
    return f"{type(error).__name__}: {reason}"


def check_names(state: Mapping[Any, Any], name: str) -> None:
    """Refuse a state dict whose names no model can have.

    Raises:
        CBAMError: too many names, a name that is no string, is too long or cannot be printed.
    """
    if len(state) > MOST_TENSORS:
        raise CBAMError(f"{name} holds {len(state):,} tensors; more than {MOST_TENSORS:,} are refused.")
    for key in state:
        if not isinstance(key, str) or len(key) > LONGEST_NAME or not key.isprintable():
            raise CBAMError(f"{name} holds a tensor whose name no model can have: {repr(key)[:60]}.")


def is_dense(value: Any) -> bool:
    """Return whether a value is a plain tensor, with or without data."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _file(path: Path) -> Path:
    if path.is_dir():
        places = [path / inside / "model.safetensors" for inside in ("", "best", "final")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            patterns = ("cells/*/model.safetensors", "*.safetensors", "*.pt*", "*.bin", "*.ckpt")
            close = [str(file) for pattern in patterns for file in sorted(path.glob(pattern))][:3]
            hint = f"Did you mean {', '.join(close)}?" if close else "Name the file itself."
            raise CBAMError(f"the folder {str(path)!r} holds no model.safetensors. {hint}")
        return found
    if not path.is_file():
        raise CBAMError(f"no weights file at {str(path)!r}. Give an existing .safetensors or .pth file.")
    return path


def _read(reader: Any, path: Path) -> Mapping[str, Any]:
    try:
        return reader.read(path)
    except Exception as error:
        raise cannot_read(path, error) from error
