"""A run's folder: who may write, what is done, and what to do about files that are damaged."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cbam.errors import CBAMError
from cbam.files import remove_leftovers, write_atomically

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cbam.data.image_data import ImageData

logger = logging.getLogger(__name__)


class FolderInUse(CBAMError):
    """Another process is writing to the run's folder."""

    exit_code = 1


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: The folder; made by `locked`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"

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

    def check_settings(
        self,
        now: dict[str, Any],
        differences: Callable[[dict[str, Any], dict[str, Any]], list[str]],
        needed: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Refuse to mix two different runs in one folder.

        Args:
            now: The settings of this call.
            differences: Says in words how the settings there and now would give other results.
            needed: Settings that `config.yaml` must have to be whole.

        Returns:
            The settings of the run in the folder; empty if there is none yet.

        Raises:
            CBAMError: The folder holds a run of other settings, or something that is no run.
        """
        file = self.path / "config.yaml"
        if not file.exists():
            if self.path.is_dir() and any(item.name[0] != "." for item in self.path.iterdir()):
                raise CBAMError(f"{self.path} is not empty and holds no run. Give another --output")
            if self.path.exists() and not self.path.is_dir():
                raise CBAMError(f"{self.path} is a file. Give another --output")
            return {}
        try:
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            before = None
        if not isinstance(before, dict) or not set(needed) <= set(before):
            raise CBAMError(
                f"{file} is damaged, so nobody knows what the run in this folder is. Give another --output"
            )
        if found := differences(before, now):
            raise CBAMError(
                f"{self.path} holds a run with other settings ({'; '.join(found)}). "
                "Give another --output, or the old settings to go on"
            )
        return before

    def check_data(self, data: ImageData) -> None:
        """Refuse to go on with other images than those that the run in the folder was started with.

        Raises:
            CBAMError: The images found now differ; the message says in what.
        """
        before, now = self.read_json("data.json") or {}, data.identity
        differing = [name for name in now if name in before and before[name] != now[name]]
        if differing:
            told = "; ".join(
                f"{name}: {_short(before[name])} there, {_short(now[name])} now" for name in differing
            )
            raise CBAMError(
                f"{self.path} holds a run on other images ({told}). Results on both cannot be compared:"
                " give another --output, or the old images to go on"
            )

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write `config.yaml`."""
        write_atomically(
            self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
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
        except ValueError as error:
            aside = file.with_name(file.name + ".damaged")
            with suppress(FileNotFoundError):  # another process of this run was faster
                file.replace(aside)
            logger.warning("%s is damaged (%s); kept as %s and made again", file, error, aside.name)
            return None
        return content

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        write_atomically(self.path / name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def mend_metrics(self) -> None:
        """Drop lines of `metrics.jsonl` that a kill or a full disk tore, so that new ones can follow."""
        if not self.metrics.exists():
            return
        text = self.metrics.read_text(encoding="utf-8", errors="replace")
        whole = [line for line in text.splitlines() if _is_row(line)]
        mended = "".join(line + "\n" for line in whole)
        if mended != text:
            logger.warning(
                "%s: dropped %d damaged line(s)", self.metrics, len(text.splitlines()) - len(whole)
            )
            write_atomically(self.metrics, mended)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl` and force it to the disk: a checkpoint that follows must not outlive it."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def replace_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Make `rows` the whole content of `metrics.jsonl`."""
        write_atomically(self.metrics, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if _is_row(line)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
