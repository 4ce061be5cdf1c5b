"""The results on disk, from where a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.environment import now

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src/cbam", "benchmarks/gpu")


def code_hash() -> str:
    """Return what tells this code from any other, in or outside of a git repository."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


class Store:
    """The JSON file of one run: one state of the code on one device.

    Args:
        folder: Where it lies; made if it is missing.
    """

    def __init__(self, folder: Path):
        self.path = folder / "gpu.json"
        self.content: dict[str, Any] = {
            "identity": {},
            "environment": {},
            "sessions": [],
            "jobs": {},
            "skipped": {},
        }

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """What has been done, by the jobs' names."""
        return self.content["jobs"]

    def open(self, identity: dict[str, Any], environment: dict[str, Any], restart: bool) -> None:
        """Begin, or go on with what is there.

        Args:
            identity: What two sessions must share for their numbers to stand in one table.
            environment: Header of this session.
            restart: Forget what is there.

        Raises:
            CBAMError: The file holds another run, or is none of ours.
        """
        if self.path.exists() and not restart:
            try:
                before = json.loads(self.path.read_text(encoding="utf-8"))
                differs = {k for k, v in identity.items() if before["identity"].get(k) != v}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CBAMError(f"{self.path} holds no run ({error!r}). Give another --output") from None
            if differs:
                raise CBAMError(
                    f"{self.path} holds a run that differs in {', '.join(sorted(differs))}. "
                    "Give another --output, or --restart to measure everything anew"
                )
            self.content = before
        self.content["identity"] = identity
        self.content["environment"] = self.content["environment"] or environment
        self.content["sessions"].append({"started": now(), "environment": environment})
        self.save()

    def done(self, name: str) -> bool:
        """Return whether a job has a result already; one that failed is tried again."""
        return "result" in self.jobs.get(name, {})

    def add(self, name: str, kind: str, arguments: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep what a job answered."""
        self.jobs[name] = {"kind": kind, "arguments": arguments, "finished": now(), **answer}
        self.content["skipped"].pop(name, None)

    def skip(self, name: str, why: str) -> None:
        """Keep why a job was not begun."""
        self.content["skipped"][name] = why

    def results(self, kind: str) -> list[dict[str, Any]]:
        """Return arguments and result of every job of a kind that has one, in one dict each."""
        return [
            {"name": name, **job["arguments"], **job["result"]}
            for name, job in self.jobs.items()
            if job["kind"] == kind and "result" in job
        ]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
