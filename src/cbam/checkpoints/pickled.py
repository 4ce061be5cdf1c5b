"""Files of `torch.save`, in its present form (a zip archive) and in the one before PyTorch 1.6.

A pickle is a program. torch runs it with `weights_only=True`, which accepts tensors, numbers, strings and containers
and refuses everything else. The first pass uses fake tensors, so that sizes are known before memory is allocated.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam.errors import CBAMError


def look(path: Path, size: int) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return what a file holds, with tensors without data; its metadata is empty."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if zipfile.is_zipfile(path):
        _check_archive(path, size)
    with FakeTensorMode():
        tree = read(path)
    if not zipfile.is_zipfile(path):
        _check_storages(path, size)
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error explains it
        return torch.load(path, map_location="cpu", weights_only=True)


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


def _tensors(tree: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping) and depth < 8:
        for value in tree.values():
            yield from _tensors(value, depth + 1)


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


def _check_storages(path: Path, size: int) -> None:
    """Refuse a file in the old form whose storages claim more bytes than it has: torch allocates before reading."""
    with path.open("rb") as stream:
        for _ in range(4):  # a magic number, a version, facts about the machine, then the content
            census = _Census(stream)
            census.load()
    claimed = sum(census.storages.values())
    if claimed > size:
        raise CBAMError(f"{str(path)!r} claims storages of {claimed:,} bytes or more and has {size:,}.")


class _Inert:
    """Replaces every class and function in a pickle, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Census(pickle._Unpickler):  # in Python: the unpickler in C allocates as much as a memo index claims
    """Records the storages of a pickle without allocating them."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.storages: dict[Any, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return something inert for every name."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        """Record a storage: ("storage", type, key, location, elements, view)."""
        if isinstance(pid, tuple) and len(pid) > 4:
            # An element has at least one byte; tensors that share a storage name it again.
            self.storages[pid[2]] = max(0, int(pid[4]), self.storages.get(pid[2], 0))
        return _Inert()
