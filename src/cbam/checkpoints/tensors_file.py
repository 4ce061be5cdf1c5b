"""safetensors files: the library checks the header against the file's size before a tensor is created."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cbam.errors import CBAMError
from cbam.files import write_atomically

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def claims(path: Path) -> bool:
    """Return whether a file is, or claims to be, a safetensors file.

    Its first eight bytes are the header's length, and the header begins with a brace.
    """
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def look(path: Path, size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return {name: tensor without data} and the metadata."""
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            view = file.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise CBAMError(
                    f"{str(path)!r}: {name[:60]!r} is {view.get_dtype()}. Known: {', '.join(_DTYPES)}."
                )
            found[name] = torch.empty(view.get_shape(), dtype=_DTYPES[view.get_dtype()], device="meta")
        return found, dict(file.metadata() or {})


def read(path: Path) -> Mapping[str, Any]:
    """Return {name: tensor}."""
    from safetensors.torch import load_file

    return load_file(path, backend="pread")  # if a memory-mapped file shrank meanwhile, the process would die


def write(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict atomically; tensors that share memory are written separately."""
    known = set(_DTYPES.values())
    odd = [f"{name} ({tensor.dtype})" for name, tensor in state.items() if tensor.dtype not in known]
    if odd:
        raise CBAMError(
            f"cannot write {odd[0]} to {path.name!r}. Types that can: {', '.join(map(str, known))}."
        )
    write_atomically(path, to_bytes(state, metadata))


def to_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file's content; unlike safetensors alone, the same tensors and metadata give the same bytes.

    >>> metadata = {name: name for name in "abcdefgh"}
    >>> len({to_bytes({"w": torch.ones(2)}, metadata) for _ in range(9)})
    1
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    content = save(own, {"format": "pt", **(metadata or {})})
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    # Their order is that of a hash table.
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    ordered = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # as the format requires, so that the tensors are aligned
    return b"".join((len(ordered).to_bytes(8, "little"), ordered, memoryview(content)[8 + length :]))


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes, row by row, without NumPy.

    >>> raw(torch.tensor([1, 256], dtype=torch.int16))
    b'\\x01\\x00\\x00\\x01'
    """
    here = tensor.detach().cpu().contiguous()
    return ctypes.string_at(here.data_ptr(), here.numel() * here.element_size()) if here.numel() else b""


def header(path: Path) -> dict[str, Any]:
    """Return a file's header, for tests and inspection.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "w.safetensors", {"a": torch.zeros(2)})
    ...     header(Path(folder) / "w.safetensors")["a"]["shape"]
    [2]
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(min(length, path.stat().st_size)))
