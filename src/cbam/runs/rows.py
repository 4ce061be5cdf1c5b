"""A file of JSON lines that survives a kill: each row is forced to the disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbam.files import write_atomically

logger = logging.getLogger(__name__)


class Rows:
    """Reads and writes one file of JSON objects, one a line.

    Args:
        path: The file; made, with its folder, by the first row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = Rows(Path(folder) / "metrics.jsonl")
    ...     rows.append({"epoch": 1})
    ...     rows.append({"epoch": 2})
    ...     rows.read()
    [{'epoch': 1}, {'epoch': 2}]
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return the rows; truncated lines are skipped."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [row for line in lines if (row := _row(line)) is not None]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row and force it to the disk: what is written next must not outlive it."""
        text = json.dumps(row, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def replace(self, rows: Sequence[dict[str, Any]]) -> None:
        """Make `rows` the whole content of the file."""
        write_atomically(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def mend(self) -> None:
        """Drop lines that a kill or a full disk truncated, so that new rows can follow; an intact file is kept."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        whole = [line for line in lines if _row(line) is not None]
        mended = "".join(line + "\n" for line in whole)
        if mended != text:
            logger.warning("%s: dropped %d damaged line(s)", self.path, len(lines) - len(whole))
            write_atomically(self.path, mended)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
