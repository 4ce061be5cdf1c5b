"""A run's folder: one writer at a time, one set of settings, and files that may be damaged."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from cbam.documents import read_yaml
from cbam.errors import CBAMError
from cbam.files import checked_path, remove_leftovers, write_atomically
from cbam.runs.config import RunConfig
from cbam.runs.environment import with_session
from cbam.runs.rows import Rows

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class FolderInUse(CBAMError):
    """Another process is writing to the run's folder."""

    exit_code = 1


class FolderLost(CBAMError):
    """The run's folder was deleted or moved away under the run."""

    exit_code = 1


class RunFolder:
    """Reads and writes the files of one run: `config.yaml`, `env.json`, `metrics.jsonl` and others.

    Args:
        path: The folder; made by `locked`.
        overwrite: A run that is there is moved aside by `make_room`, so nothing in it has to fit.

    Attributes:
        metrics: The rows of the run, by default in `metrics.jsonl`.
    """

    def __init__(self, path: Path, *, overwrite: bool = False):
        self.path = path
        self._overwrite = overwrite
        self.metrics = Rows(path / "metrics.jsonl")
        self._kept: tuple[int, int] | None = None  # which folder it was when it was opened

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes to the folder; the lock of a process that was killed does not count.

        Raises:
            FolderInUse: Another process holds the lock.
            OSError: The folder cannot be made or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as lock:
            if fcntl:
                try:
                    # A record lock dies with its process, and worker processes do not inherit it.
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.seek(0)
                    holder = lock.read().strip() or "another process"
                    raise FolderInUse(
                        f"{self.path} is being written by {holder}. Wait for it, or give another --output"
                    ) from None
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            remove_leftovers(self.path)
            yield

    def make_room(self) -> Path | None:
        """Move a run that is to be overwritten aside; return where it is now, None where there was none.

        Raises:
            FolderInUse: A process writes into it.
        """
        if not self._overwrite or self.settings() is None:
            return None
        with self.locked():
            names = chain([f"{self.path.name}-old"], (f"{self.path.name}-old-{n}" for n in count(2)))
            aside = next(path for path in map(self.path.with_name, names) if not path.exists())
            self.path.rename(aside)
        self._overwrite = False
        return aside

    def settings(self) -> dict[str, Any] | None:
        """Return what `config.yaml` holds: None where there is none, {} where it is damaged."""
        file = self.path / "config.yaml"
        if not file.exists():
            return None
        try:
            content = read_yaml(file)
        except CBAMError:
            return {}
        return content if isinstance(content, dict) else {}

    def check_settings(
        self, now: dict[str, Any], form: type[RunConfig], restart: bool | None = None
    ) -> dict[str, Any]:
        """Refuse to mix two different runs in one folder.

        Args:
            now: The settings of this call.
            form: The run's options; decides which of them matter.
            restart: Whether a different run is dropped; None where the run has no such option.

        Returns:
            The settings of the run in the folder; empty if there is none yet.

        Raises:
            CBAMError: The folder holds a run with other settings, or something else.
        """
        if checked_path(self.path).exists() and not self.path.is_dir():
            raise CBAMError(f"{self.path} is a file. Give another --output")
        before = self.settings()
        if before is None:
            if self.path.is_dir() and any(item.name[0] != "." for item in self.path.iterdir()):
                raise CBAMError(f"{self.path} is not empty and holds no run. Give another --output")
            return {}
        if self._overwrite:
            return {}
        if not before or not set(form.essential) <= set(before):
            raise CBAMError(
                f"{self.path / 'config.yaml'} is damaged, so the settings of the run in this folder are unknown. "
                f"Give another --output{'' if restart is not None else ', or --overwrite to move it aside'}"
            )
        if (found := form.differences(before, now)) and not restart:
            otherwise = (
                "--overwrite to move it aside and start over, or the old settings to resume it"
                if restart is None
                else "--restart to start over"
            )
            raise CBAMError(
                f"{self.path} holds a run with other settings ({'; '.join(found)}). "
                f"Give another --output, {'or ' if restart is not None else ''}{otherwise}"
            )
        return before

    def open(self, settings: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write `config.yaml`, and `env.json` with the sessions before this one; drop torn lines of the metrics.

        Args:
            settings: Of this call, checked before.
            environment: Of `describe_environment`.
        """
        write_atomically(
            self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        )
        self.write_json("env.json", with_session(self.read_json("env.json"), environment))
        self.metrics.mend()
        self._kept = _identity(self.path)

    def check_kept(self) -> None:
        """Notice that the folder was deleted, emptied or replaced since it was opened.

        Raises:
            FolderLost: Settings and earlier results are gone; what is written now would be no run.
        """
        if self._kept is None or (
            self._kept == _identity(self.path) and (self.path / "config.yaml").exists()
        ):
            return
        raise FolderLost(
            f"{self.path} was deleted, moved or emptied while this run was writing into it. What it held is lost here:"
            " delete what is left and start again, or move it back and resume"
        )

    def check_data(self, now: Mapping[str, Any]) -> None:
        """Refuse to resume with other images than those that the run in the folder was started with.

        Args:
            now: What identifies the images of this call.

        Raises:
            CBAMError: The images differ; the message names what differs.
        """
        before = {} if self._overwrite else self.read_json("data.json") or {}
        differing = [name for name in now if name in before and before[name] != now[name]]
        if differing:
            found = "; ".join(
                f"{name}: {_short(before[name])} there, {_short(now[name])} now" for name in differing
            )
            raise CBAMError(
                f"{self.path} holds a run on other images ({found}). Results on both cannot be compared:"
                " give another --output, --overwrite to move it aside and start over, or the old images to resume it"
            )

    def read_json(self, name: str, *needed: str) -> dict[str, Any] | None:
        """Return the object in a JSON file; None where there is none or a damaged one, which is moved aside.

        Args:
            name: The file, relative to the folder.
            needed: Keys without which the file is damaged.
        """
        file = self.path / name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not set(needed) <= set(content):
                raise ValueError(f"expected an object with {', '.join(needed) or 'any keys'}")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            aside = file.with_name(file.name + ".damaged")
            with suppress(FileNotFoundError):  # another process of this run was faster
                file.replace(aside)
            logger.warning("%s is damaged (%s); kept as %s and made again", file, error, aside.name)
            return None
        return content

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        write_atomically(self.path / name, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
