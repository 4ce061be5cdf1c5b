"""Checkpoints that survive a kill at any moment: folders with checksums; the newest good one is found again.

A checkpoint is a folder `step-000001200` with files and a `manifest.json` that holds their sizes and SHA-256. It is
written under another name, forced to the disk and renamed, so a folder of that name is complete; the checksums are for
what happens to a disk afterwards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from cbam.files import remove_leftovers, sync_folder

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PREFIX = "step-"
Describe: TypeAlias = "Callable[[Mapping[str, bytes]], dict[str, bytes]]"


class Checkpoints:
    """The checkpoints of one training.

    Args:
        path: Folder that holds them; made with the first one.
        keep: How many of the newest stay; older ones are deleted once a newer one is safe.
        describe: Returns further files of a checkpoint from its own, such as the network's config.json.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as there:
    ...     checkpoints = Checkpoints(Path(there), keep=2)
    ...     for step in (10, 20, 30):
    ...         _ = checkpoints.write(step, {"training.pt": b"state"})
    ...     [found.name for found in checkpoints.newest_first()]
    ['step-000000030', 'step-000000020']
    """

    def __init__(self, path: Path, keep: int = 2, describe: Describe | None = None):
        self.path = path
        self.keep = keep
        self.describe = describe

    def write(self, step: int, files: dict[str, bytes]) -> Path:
        """Write a checkpoint, then delete those that are too many; a checkpoint of that step is replaced.

        Args:
            step: Steps done.
            files: File name -> content.

        Raises:
            OSError: The disk is full or cannot be written; earlier checkpoints are untouched.
        """
        if self.describe is not None:
            files = {**files, **self.describe(files)}
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        final = self.path / f"{_PREFIX}{step:09d}"
        temporary = self.path / f".{final.name}.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            _write_all(temporary, step, files)
            if final.exists():  # a damaged one, or the same step again
                shutil.rmtree(final)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.path)
        for old in list(self.newest_first())[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest_first(self) -> Iterator[Path]:
        """Yield the checkpoints' folders, unchecked."""
        if self.path.is_dir():
            yield from sorted(self.path.glob(f"{_PREFIX}*"), reverse=True)

    def newest_good(self) -> Path | None:
        """Return the newest checkpoint whose files have the right checksums; the log names the damaged ones."""
        for folder in self.newest_first():
            if problem := damage(folder):
                logger.warning(
                    "checkpoint %s cannot be used (%s): going back to the one before", folder, problem
                )
            else:
                return folder
        return None

    def clear(self) -> None:
        """Delete all checkpoints: the training is done."""
        shutil.rmtree(self.path, ignore_errors=True)


def step_of(folder: Path) -> int:
    """Return the number of steps done before a checkpoint.

    >>> step_of(Path("checkpoints/step-000000030"))
    30
    """
    return int(folder.name.removeprefix(_PREFIX))


def damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint's files, or "" if they are good.

    Args:
        folder: One checkpoint.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            content = (folder / name).read_bytes()
            if len(content) != expected["bytes"]:
                return f"{name} has {len(content)} bytes instead of {expected['bytes']}"
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return ""


def _write_all(folder: Path, step: int, files: dict[str, bytes]) -> None:
    manifest = {}
    for name, content in files.items():
        _write(folder / name, content)
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write(folder / MANIFEST, json.dumps({"step": step, "files": manifest}, indent=1).encode())
    sync_folder(folder)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
