"""Atomic writes: how this project writes all its results."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from cbam.errors import CBAMError


def write_atomically(path: str | Path, content: bytes | str) -> Path:
    """Write `content` so that after a kill at any time the file is the old one or the new one, never a part.

    The bytes go to a temporary file in the same folder (a rename across file systems would be a copy), are synced to
    disk, and replace the target in one step; then the folder is synced too.

    Args:
        path: The file to write; missing parent folders are created.
        content: The whole content; text is written as UTF-8.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: The folder is not writable, or the disk is full; the old file is unchanged.

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
    """Delete the temporary files and folders that killed processes left anywhere below `folder`.

    Args:
        folder: A folder that nothing is writing to.

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
            leftover.unlink(missing_ok=True)  # its folder may have been removed before


def checked_path(path: str | Path) -> Path:
    """Return a path that may exist or not; refuse a name that the system cannot look up.

    Args:
        path: From a user or a file.

    Raises:
        CBAMError: The name is too long or has a zero byte, or a folder on the way may not be read.

    >>> checked_path("absent").name
    'absent'
    """
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        text = str(path)
        shown = text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"
        raise CBAMError(f"{shown!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return path


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that a renamed file in it survives a power failure."""
    # Windows cannot open folders, and some network file systems cannot sync them; the file itself is safe.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
