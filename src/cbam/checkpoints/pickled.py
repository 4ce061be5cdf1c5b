"""Files of `torch.save`, in its present form (a zip archive) and in the one before PyTorch 1.6.

A pickle is a program. torch runs it with `weights_only=True`, which accepts tensors, numbers, strings and containers
and refuses everything else. What training scripts save beside the weights, their options, paths and numbers of NumPy,
becomes something inert: neither argparse nor NumPy is called. `census` has followed the pickle before, without building
anything. The first pass of torch gives tensors without data, so that names and shapes are known before memory is
allocated.
"""

from __future__ import annotations

import io
import pickle
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from cbam.checkpoints.census import Census
from cbam.errors import CBAMError


class _StandIn:
    """Takes the place of a class or function of `BESIDE`, and does nothing."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


BESIDE = (
    "argparse.Namespace", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype",
    "numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct", "numpy.ndarray", "pathlib.Path",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip
"""What timm's, torchvision's and most own scripts put into a checkpoint beside the weights."""
_STAND_INS: list[Any] = [(type(name, (_StandIn,), {}), name) for name in BESIDE]
_ALONE = threading.Lock()  # torch's list is the process's


def look(path: Path, size: int) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return what a file holds, with tensors without data; its metadata is empty."""
    if zipfile.is_zipfile(path):
        _check_archive(path, size)
        content = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # as torch.load finds it
        _check_pickles(path, size, io.BytesIO(content), 1)
    else:
        with path.open("rb") as stream:
            # A magic number, a version, facts about the machine, the content, and the names of its storages.
            _check_pickles(path, size, stream, 5)
    with torch.serialization.skip_data():
        tree = _load(path, "meta")
    if not isinstance(tree, Mapping):
        raise CBAMError(f"{str(path)!r} holds no state dict (names to tensors), but {kind_of(tree)}.")
    for tensor in _tensors(tree):
        if tensor.layout == torch.strided and tensor.numel() * tensor.element_size() > size:
            raise CBAMError(
                f"{str(path)!r} holds a tensor of shape {tuple(tensor.shape)}, more than the file's {size:,} bytes."
            )
    return tree, {}


def read(path: Path) -> Mapping[str, Any]:
    """Return the content with data."""
    return _load(path, "cpu")


def _load(path: Path, device: str) -> Any:
    try:
        return _load_weights(path, device)
    except pickle.UnpicklingError as error:
        if not any(f"GLOBAL {name} " in str(error) for name in BESIDE):
            raise
    with _ALONE, torch.serialization.safe_globals(_STAND_INS):
        return _load_weights(path, device)


def _load_weights(path: Path, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error explains it
        return torch.load(path, map_location=device, weights_only=True)


def kind_of(value: Any) -> str:
    """Return the name of a value's type; a tensor without data, from the first pass, is a Tensor too.

    >>> kind_of(torch.zeros(2)), kind_of([1])
    ('Tensor', 'list')
    """
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_quantized:
        return "quantized Tensor"
    return "Tensor" if value.layout == torch.strided else "sparse Tensor"


def _tensors(tree: Any) -> Iterator[Tensor]:
    seen, todo = set[int](), [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values()


def _check_pickles(path: Path, size: int, stream: IO[bytes], count: int) -> None:
    """Refuse what would take more time or memory than the file's size accounts for."""
    storages: dict[Any, int] = {}
    for _ in range(count):
        census = Census(stream, str(path), size)
        census.load()
        storages |= census.storages
    claimed = sum(storages.values())
    if claimed > size:
        raise CBAMError(f"{str(path)!r} claims storages of {claimed:,} bytes or more and has {size:,}.")


def _check_archive(path: Path, size: int) -> None:
    """Refuse compressed records, which `torch.save` never writes and which may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CBAMError(
            f"{str(path)!r} is a compressed archive (TorchScript?), which torch.save does not write."
        )
    if sum(record.file_size for record in records) > size:
        raise CBAMError(f"{str(path)!r} claims more content than its {size:,} bytes.")
