"""Remember which files of a large folder are good images, so that they are not decoded at every start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from cbam.files import write_atomically

WORTH_IT = 2000  # files; fewer are decoded in seconds


class CheckedFiles:
    """Remembers good files by name, size and modification time: 8 bytes each, in the user's cache.

    Args:
        root: the folder that was checked.
        max_pixels: the limit used; the result depends on it and on the version of Pillow.
        also: what else the result depends on.
    """

    def __init__(self, root: Path, max_pixels: int, also: str = ""):
        about = f"{root.resolve()}\0{max_pixels}\0{PIL.__version__}{also}"
        name = hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.file = cache / "torch-cbam" / "checked" / name
        self._known = np.empty(0, dtype=np.uint64)
        try:
            content = self.file.read_bytes()
            self._known = np.frombuffer(content[: len(content) // 8 * 8], dtype="<u8")
        except OSError:
            pass

    def keys(self, paths: Sequence[str]) -> NDArray[np.uint64]:
        """Return a number for each file as it is now (N,), 0 where there is none."""
        return np.array([_key(path) for path in paths], dtype=np.uint64)

    def known(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which of the files were good when checked and have not changed since (N,)."""
        return np.isin(keys, self._known) & (keys != 0)

    def remember(self, keys: NDArray[np.uint64]) -> None:
        """Replace the remembered files by these; a cache that cannot be written is ignored."""
        try:
            write_atomically(self.file, np.unique(keys).astype("<u8").tobytes())
        except OSError:
            return


def _key(path: str) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0
    text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
    )
