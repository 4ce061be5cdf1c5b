"""Reader of the idx format, in which MNIST and Fashion-MNIST are published (plain or gzip)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import torch

from cbam.errors import CBAMError

_UNSIGNED_BYTE = 0x08
_MAX_BYTES = 2**32


def read_idx(path: Path, dimensions: int) -> torch.Tensor:
    """Return the array of unsigned bytes in an idx file, plain or gzip.

    The header is two zero bytes, the type (8 = unsigned byte), the number of dimensions, and then each size as a
    big-endian 32-bit number (the description on the MNIST page of LeCun, Cortes and Burges).

    Args:
        path: the file.
        dimensions: how many dimensions it must have (3 for images, 1 for labels).

    Raises:
        CBAMError: the file cannot be read, is no idx file of that kind, or its length is not what its header says.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _read(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, path, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CBAMError(f"{path} is truncated or damaged ({error}). Delete it and get it again.") from error
    except OSError as error:
        raise CBAMError(f"{path} cannot be read: {error}") from error


def _read(stream: BinaryIO, path: Path, dimensions: int) -> torch.Tensor:
    magic = stream.read(4)
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise CBAMError(
            f"{path} is no idx file of unsigned bytes with {dimensions} dimension(s): "
            f"it starts with {magic.hex(' ') or 'nothing'}, expected {expected.hex(' ')}."
        )
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise CBAMError(f"{path} is truncated: it ends within its header. Delete it and get it again.")
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4)]
    size = 1
    for length in shape:
        size *= length
    if not 0 < size <= _MAX_BYTES:
        raise CBAMError(f"{path} claims the shape {tuple(shape)}; expected 1 to {_MAX_BYTES:,} bytes in all.")
    # One byte more than promised, so that a longer file shows too, and a gzip bomb never unfolds.
    content = bytearray(stream.read(size + 1))
    if len(content) != size:
        kind, found = ("truncated", f"only {len(content):,}") if len(content) < size else ("damaged", "more")
        raise CBAMError(
            f"{path} is {kind}: its header promises {size:,} bytes for the shape {tuple(shape)}, it holds {found}. "
            "Delete it and get it again."
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)
