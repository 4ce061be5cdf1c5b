"""Hand-written idx files, as small as they get."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        struct.pack(">BBBB", 0, 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def tiny_fashion_mnist(folder: Path, *, zipped: bool = True, train: int = 20, test: int = 10) -> Path:
    """Write the four files with `train` and `test` images of 6x5 pixels; image k has label k % 10 and all pixels k."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 6, 5))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(np.ascontiguousarray(array))
            name = f"{part}-{kind}-ubyte"
            (folder / (name + ".gz" if zipped else name)).write_bytes(
                gzip.compress(content) if zipped else content
            )
    return folder
