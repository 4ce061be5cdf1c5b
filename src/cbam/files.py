"""Whole files or none: the one way in which this project writes results."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | str) -> Path:
    """Write `content` so that a reader, or a kill at any time, sees the old file or the new, never a part.

    The bytes go to a temporary file in the same folder (across file systems a rename would be a copy), are
    forced to the disk, and replace the target in one step; then the folder itself is forced to the disk.

    Args:
        path: Where the file shall be; missing parent folders are made.
        content: The whole content; text is written as UTF-8.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: The folder cannot be written, or the disk is full; the old file is untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "new" / "result.json", "{}").read_text()
    '{}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files and folders that killed writers left anywhere below `folder`.

    Args:
        folder: A folder in which nobody is writing now.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / ".state.pt.17.tmp").write_text("half a st")
    ...     remove_leftovers(folder)
    ...     list(Path(folder).iterdir())
    []
    """
    for leftover in list(Path(folder).rglob(".*.*.tmp")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)  # it may have gone with its folder


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk: a renamed file is safe only then."""
    # Windows opens no folders, some network file systems refuse to sync them; the file itself is safe.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
