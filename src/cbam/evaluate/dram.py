"""Bytes that the kernels of a program read from and write to a GPU's DRAM, by the counters of Nsight Compute (ncu)."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

READ, WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")


def count_dram(program: Sequence[str], seconds: float = 80) -> list[tuple[str, float, float]]:
    """Run a program under ncu and count between its calls of `torch.cuda.profiler.start` and `stop`.

    Args:
        program: The command and its arguments.
        seconds: After which it is given up.

    Returns:
        (kernel, bytes read, bytes written), in the order of the launches.

    Raises:
        ValueError: ncu is missing or failed, or its table was not understood.
    """
    ncu = _find_ncu()
    if ncu is None:
        raise ValueError("ncu is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        # The caches as they are: what a kernel leaves for the next one in the second level is the design.
        options = ["--metrics", f"{READ},{WRITE}", "--profile-from-start", "off", "--cache-control", "none",
                   "--clock-control", "none", "--force-overwrite", "--export", str(report)]  # fmt: skip
        shown = [ncu, "--import", f"{report}.ncu-rep", "--page", "raw", "--csv", "--print-units", "base"]
        try:
            run, table = run_quietly([ncu, *options, *program], seconds), run_quietly(shown, seconds)
        except subprocess.TimeoutExpired:
            raise ValueError(f"ncu took longer than {seconds:.0f} s") from None
    if table.returncode:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if "rror" in line or "ERR" in line]
        raise ValueError("; ".join(lines[:3]) or f"ncu ended with {run.returncode}, {table.returncode}")
    return read_csv(table.stdout)


def run_quietly(
    command: Sequence[str],
    seconds: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this process's environment or another one, and keep what it prints."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
    )


def read_csv(text: str) -> list[tuple[str, float, float]]:
    """Read what `ncu --page raw --csv` prints.

    Args:
        text: A line of names, a line of units, a line for each kernel; other lines may stand before them.

    Returns:
        (kernel, bytes read, bytes written), in the order of the launches.

    Raises:
        ValueError: A column is missing, or is not in bytes.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if "Kernel Name" in line), None)
    if start is None:
        raise ValueError("no line with column names")
    units, *rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    found = []
    for column in (READ, WRITE):
        if not (units.get(column) or "").startswith("byte"):
            raise ValueError(f"column {column} is in {units.get(column)!r}")
    for row in rows:
        read, written = (float(row[column].replace(",", "")) for column in (READ, WRITE))
        found.append((row["Kernel Name"], read, written))
    return found


def _find_ncu() -> str | None:
    found = shutil.which("ncu")
    for pattern in PLACES:
        places = sorted(Path("/").glob(pattern.lstrip("/")))
        found = found or (str(places[-1]) if places else None)
    return found
