"""The run's folder: what is measured already, and the files for people and programs at the end."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cbam.bench.cells import Result
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.environment import with_session
from cbam.runs.folder import RunFolder
from cbam.runs.rows import Rows

logger = logging.getLogger(__name__)

COLUMNS = (
    "part", "study", "provider", "mode", "metric", "batch", "channels", "height", "width", "dtype", "memory_format",
    "threads", "unit", "p25", "p50", "p75", "samples", "reference", "ratio_p25", "ratio_p50", "ratio_p75",
    "torch_cbam", "torch", "commit", "cpu", "finished",
)  # fmt: skip
OUTPUTS = ("bench.json", "bench.csv", "bench.png", "bench.svg")


class BenchFolder(RunFolder):
    """Reads and writes the files of one run; a cell that is measured is one line of `measurements.jsonl`.

    Args:
        path: The folder; made by `locked`.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.metrics = Rows(path / "measurements.jsonl")

    def check(self, identity: dict[str, Any], restart: bool = False) -> None:
        """Refuse to put measurements of different things, or from different machines, into one table.

        Args:
            identity: Settings and versions of this call.
            restart: Whether what the folder holds will be dropped, see `start`.

        Raises:
            CBAMError: The folder holds another run, or something that is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CBAMError(f"{self.path} is a file. Give another --output")
        content = self.read_json("settings.json", "identity") if self.path.is_dir() else None
        if content is None:
            if self.path.is_dir() and any(item.name[0] != "." for item in self.path.iterdir()):
                raise CBAMError(
                    f"{self.path} is not empty and holds no run of `cbam bench`. Give another --output"
                )
            return
        before = content["identity"]
        found = [
            f"{name}: {_short(before.get(name))} there, {_short(identity.get(name))} now"
            for name in dict.fromkeys([*before, *identity])
            if before.get(name) != identity.get(name)
        ]
        if found and not restart:
            raise CBAMError(
                f"{self.path} holds a run with other settings ({'; '.join(found)}). "
                "Give another --output, or --restart to measure everything anew"
            )

    def start(self, identity: dict[str, Any], environment: dict[str, Any], restart: bool) -> dict[str, Any]:
        """Begin, or go on; call it with the folder locked.

        Returns:
            The environment of the run: that of its first session, and behind it what differed later.
        """
        if restart:
            for name in ("settings.json", self.metrics.path.name, *OUTPUTS):
                (self.path / name).unlink(missing_ok=True)
        self.metrics.mend()
        before = self.read_json("settings.json", "identity") or {}
        environment = with_session(before.get("environment"), environment)
        self.write_json("settings.json", {"identity": identity, "environment": environment})
        return environment

    def results(self) -> dict[str, Result]:
        """Return what is measured, by the cells' names."""
        found = [Result.from_json(row) for row in self.metrics.read()]
        return {result.cell.name: result for result in found}

    def add(self, result: Result) -> None:
        """Keep a result: from now on a kill cannot take it away."""
        self.metrics.append(result.to_json())

    def write_outputs(
        self, results: Sequence[Result], identity: dict[str, Any], environment: dict[str, Any]
    ) -> None:
        """Write `bench.json` and `bench.csv`."""
        rows = [result.to_json() for result in results]
        self.write_json("bench.json", {"settings": identity, "environment": environment, "results": rows})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(csv_rows(results, environment))
        write_atomically(self.path / "bench.csv", text.getvalue())


def csv_rows(results: Sequence[Result], environment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the long table: a row for every provider and metric of every cell.

    Args:
        results: Of a run.
        environment: As `cbam.runs.environment.describe_environment` makes it.
    """
    packages = environment.get("packages", {})
    for result in results:
        cell = result.cell
        common: dict[str, Any] = dict(zip(("batch", "channels", "height", "width"), cell.shape, strict=True))
        common |= {
            name: getattr(cell, name)
            for name in ("part", "study", "mode", "dtype", "memory_format", "threads")
        }
        common |= {
            "torch_cbam": packages.get("torch-cbam"), "torch": packages.get("torch"), "commit": environment.get("git"),
            "cpu": environment.get("machine", {}).get("cpu"), "finished": result.finished,
        }  # fmt: skip
        for provider, samples in result.samples_ms.items():
            times = dict(zip(("p25", "p50", "p75"), result.quartiles(provider), strict=True))
            names = ("ratio_p25", "ratio_p50", "ratio_p75")
            times |= dict(zip(names, result.ratio_quartiles(provider), strict=True))
            yield {
                **common, **times, "provider": provider, "metric": "time", "unit": "ms", "samples": len(samples),
                "reference": cell.reference,
            }  # fmt: skip
        for metric, counts in (("saved", result.saved_bytes), ("peak", result.peak_bytes)):
            for provider, count in counts.items():
                below = counts.get(cell.reference, result.input_bytes)
                yield {
                    **common, "provider": provider, "metric": metric, "unit": "bytes", "p50": count, "samples": 1,
                    "reference": cell.reference if cell.reference in counts else "map", "ratio_p50": count / below,
                }  # fmt: skip


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
