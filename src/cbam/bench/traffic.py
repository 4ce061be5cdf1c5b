"""How often the map passes through DRAM, by the counters that Nsight Compute (ncu) reads.

Run as `python -m cbam.bench.traffic DEVICE CASES`, this is the program that ncu looks at.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cbam.bench.baselines import TEXTBOOK, ours_of
from cbam.bench.cases import BOTH, Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device, device_of
from cbam.bench.modules import Comparison

READ, WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
MARKER = "spin_kernel"
"""What `torch.cuda._sleep` launches: it stands around every call in ncu's list of kernels."""
PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
OURS = "ours"
PROVIDERS = (OURS, TEXTBOOK)
REPEATS = 3
SECONDS = 80


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Count the bytes that forward and backward move through DRAM, or say why they cannot be counted."""
    shapes = [(case.shape[0], *size) for size in config.maps]
    cases = [asdict(replace(case, part="modules", mode=BOTH, shape=shape)) for shape in shapes]
    program = [sys.executable, "-m", "cbam.bench.traffic", device.kind, json.dumps(cases)]
    ncu = _find_ncu()
    if not device.is_gpu or ncu is None:
        # The program is run all the same, so that a dry run finds its mistakes.
        answer = _run(program)
        why = "there is no GPU" if not device.is_gpu else "ncu is not installed"
        return Result(
            case, extra={"why": why, "program": answer.stderr[-500:] if answer.returncode else "runs"}
        )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        # The caches as they are: what a kernel leaves for the next one in the second level is the design.
        options = ["--metrics", f"{READ},{WRITE}", "--profile-from-start", "off", "--cache-control", "none",
                   "--clock-control", "none", "--force-overwrite", "--export", str(report)]  # fmt: skip
        shown = [ncu, "--import", f"{report}.ncu-rep", "--page", "raw", "--csv", "--print-units", "base"]
        try:
            run, table = _run([ncu, *options, *program]), _run(shown)
        except subprocess.TimeoutExpired:
            return Result(case, extra={"why": f"ncu took longer than {SECONDS} s"})
    if table.returncode:
        lines = [
            line for line in (run.stdout + run.stderr).splitlines() if "rror" in line.replace("ERR", "rror")
        ]
        why = "; ".join(lines[:3]) or f"ncu ended with {run.returncode}, {table.returncode}"
        return Result(case, extra={"why": why})
    try:
        return Result(case, extra={"regions": regions(read_csv(table.stdout), shapes)})
    except ValueError as error:
        return Result(
            case, extra={"why": f"ncu's table was not understood: {error}", "table": table.stdout[:2000]}
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)


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


def regions(
    kernels: Sequence[tuple[str, float, float]], shapes: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Give every kernel to the call that launched it.

    Args:
        kernels: (name, bytes read, bytes written) in the order of the launches. A marker stands in front of each
            call and behind it; what follows there empties the cache, and writes what the call left in it.
        shapes: Of the maps.

    Returns:
        For each call what it was, its kernels, and the bytes written after them.

    Raises:
        ValueError: There are more or fewer calls than there should be.
    """
    parts: list[list[tuple[str, float, float]]] = []
    for kernel in kernels:
        if MARKER in kernel[0]:
            parts.append([])
        elif parts:
            parts[-1].append(kernel)
    names = list(_names(shapes))
    if len(parts) != 2 * len(names):
        raise ValueError(f"{len(parts) / 2:g} calls instead of {len(names)}")
    return [
        {
            "shape": shape, "provider": provider, "direction": direction, "kernels": call,
            "written_after": sum(written for _, _, written in after),
        }
        for (shape, provider, direction), call, after in zip(names, parts[::2], parts[1::2], strict=True)
    ]  # fmt: skip


def _names(shapes: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], str, str]]:
    for shape in shapes:
        for provider in PROVIDERS:
            for _ in range(REPEATS):
                yield shape, provider, "forward"
                yield shape, provider, "backward"


def _find_ncu() -> str | None:
    found = shutil.which("ncu")
    for pattern in PLACES:
        places = sorted(Path("/").glob(pattern.lstrip("/")))
        found = found or (str(places[-1]) if places else None)
    return found


def main(kind: str, cases: Sequence[dict[str, Any]]) -> None:
    """Call each provider on each map, with markers around each call for whoever counts."""
    device = device_of(kind)
    for fields in cases:
        comparison = Comparison(Case(**{**fields, "shape": tuple(fields["shape"])}), device, ())
        x, gradient = comparison.x, comparison.gradient
        for provider in PROVIDERS:
            name = ours_of(comparison.baselines) if provider == OURS else provider
            baseline = comparison.baselines[name]
            baseline.select()
            comparison.step(name)
            for _ in range(REPEATS):
                y = _marked(device, partial(baseline.module, x))
                _marked(device, partial(torch.autograd.grad, y, [x, *comparison.weights[name]], gradient))
        device.tidy()


def _marked(device: Device, call: Callable[[], Any]) -> Any:
    device.flush()
    device.synchronize()
    if device.is_gpu:
        torch.cuda.profiler.start()
        torch.cuda._sleep(1)
    found = call()
    if device.is_gpu:
        torch.cuda._sleep(1)
    device.flush()
    device.synchronize()
    if device.is_gpu:
        torch.cuda.profiler.stop()
    return found


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
