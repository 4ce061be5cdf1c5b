"""The run's folder: the results so far, and the output files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cbam.bench.cases import Result
from cbam.bench.report import markdown
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.folder import RunFolder
from cbam.runs.rows import Rows

COLUMNS = (
    "part", "study", "provider", "mode", "metric", "batch", "channels", "height", "width", "dtype", "memory_format",
    "threads", "unit", "p25", "p50", "p75", "samples", "reference", "ratio_p25", "ratio_p50", "ratio_p75",
    "torch_cbam", "torch", "commit", "cpu", "finished",
)  # fmt: skip
OUTPUTS = ("bench.json", "bench.csv", "bench.md", "bench.png", "bench.svg")


class BenchFolder(RunFolder):
    """Reads and writes the files of one run; a case that is measured is one line of `measurements.jsonl`.

    Args:
        path: The folder; made by `locked`.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.metrics = Rows(path / "measurements.jsonl")

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the run in the folder; before version 0.1 they were in `settings.json`."""
        old = self.read_json("settings.json", "identity") if self.path.is_dir() else None
        return old["identity"] if old else super().settings()

    def drop(self) -> None:
        """Delete the run in the folder and nothing else."""
        for name in ("settings.json", "config.yaml", "env.json", "log.txt", self.metrics.path.name, *OUTPUTS):
            (self.path / name).unlink(missing_ok=True)

    def results(self) -> dict[str, Result]:
        """Return what is measured, by the cases' names."""
        found = [Result.from_json(row) for row in self.metrics.read()]
        return {result.case.name: result for result in found}

    def write_outputs(
        self, results: Sequence[Result], settings: dict[str, Any], left: dict[str, str] | None = None
    ) -> None:
        """Write `bench.json`, `bench.csv` and `bench.md`; `left` says why a case was not measured."""
        environment, rows = self.read_json("env.json") or {}, [result.to_json() for result in results]
        content = {
            "settings": settings,
            "environment": environment,
            "results": rows,
            "not_measured": left or {},
        }
        self.write_json("bench.json", content)
        write_atomically(self.path / "bench.md", markdown(results, settings, environment, left or {}))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(csv_rows(results, environment))
        write_atomically(self.path / "bench.csv", text.getvalue())


def load(folder: Path) -> list[Result]:
    """Read the results in the folder that `cbam bench` was given as `--output`.

    Raises:
        CBAMError: It holds no finished run.
    """
    file = folder / "bench.json"
    try:
        return [Result.from_json(row) for row in json.loads(file.read_text(encoding="utf-8"))["results"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CBAMError(f"{file} holds no run ({error}). Make one: cbam bench --output {folder}") from None


def csv_rows(results: Sequence[Result], environment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the long table: a row for every provider and metric of every case."""
    packages = environment.get("packages", {})
    for result in results:
        case = result.case
        common: dict[str, Any] = dict(zip(("batch", "channels", "height", "width"), case.shape, strict=True))
        common |= {
            name: getattr(case, name)
            for name in ("part", "study", "mode", "dtype", "memory_format", "threads")
        }
        common |= {
            "torch_cbam": packages.get("torch-cbam"), "torch": packages.get("torch"), "commit": environment.get("git"),
            "cpu": environment.get("machine", {}).get("cpu"), "finished": result.finished,
        }  # fmt: skip
        for way in result.ways:
            timed = result.of_way(way)
            for provider, samples in timed.samples_ms.items():
                times = dict(zip(("p25", "p50", "p75"), timed.quartiles(provider), strict=True))
                names = ("ratio_p25", "ratio_p50", "ratio_p75")
                times |= dict(zip(names, timed.ratio_quartiles(provider), strict=True))
                yield {
                    **common, **times, "provider": provider + way, "metric": "time", "unit": "ms",
                    "samples": len(samples), "reference": case.reference + way,
                }  # fmt: skip
        for metric, counts in (("saved", result.saved_bytes), ("peak", result.peak_bytes)):
            for provider, count in counts.items():
                below = counts.get(case.reference, result.input_bytes)
                yield {
                    **common, "provider": provider, "metric": metric, "unit": "bytes", "p50": count, "samples": 1,
                    "reference": case.reference if case.reference in counts else "map", "ratio_p50": count / below,
                }  # fmt: skip
