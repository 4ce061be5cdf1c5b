"""How often the map passes through DRAM, by the counters that Nsight Compute (ncu) reads; and every kernel's time.

Run as `python -m gpu.traffic SHAPES`, this is the program that ncu looks at.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cbam.bench.cells import BOTH
from cbam.bench.rivals import OPERATOR
from gpu.device import Machine
from gpu.module import Contest

DTYPE, LAYOUT = "bfloat16", "channels_last"
PROVIDERS = (OPERATOR, "textbook")
READ, WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
MARKER = "spin_kernel"
"""What `torch.cuda._sleep` launches: it stands around every call in ncu's list of kernels."""
PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
REPEATS = 3
SECONDS = 80
PROFILED = 5


def count(machine: Machine, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the bytes that each provider's forward and backward move through DRAM, or why they cannot be counted.

    Args:
        machine: Where.
        shapes: Of the maps.
    """
    program = [sys.executable, "-m", "gpu.traffic", machine.kind, json.dumps(shapes)]
    ncu = _find_ncu()
    if not machine.is_gpu or ncu is None:
        # The program is run all the same, so that a dry run finds its mistakes.
        answer = _run(program)
        why = "ncu is not installed" if ncu is None else "there is no GPU"
        return {"why": why, "program": answer.stderr[-500:] if answer.returncode else "runs"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        # The caches as they are: what a kernel leaves for the next one in the second level is the design.
        options = ["--metrics", f"{READ},{WRITE}", "--profile-from-start", "off", "--cache-control", "none",
                   "--clock-control", "none", "--force-overwrite", "--export", str(report)]  # fmt: skip
        try:
            run = _run([ncu, *options, *program])
            shown = _run(
                [ncu, "--import", f"{report}.ncu-rep", "--page", "raw", "--csv", "--print-units", "base"]
            )
        except subprocess.TimeoutExpired:
            return {"why": f"ncu took longer than {SECONDS} s"}
    if shown.returncode:
        lines = [line for line in (run.stdout + run.stderr).splitlines() if "ERR" in line or "rror" in line]
        return {"why": "; ".join(lines[:3]) or f"ncu ended with {run.returncode}, {shown.returncode}"}
    try:
        return {"regions": regions(read_csv(shown.stdout), shapes)}
    except ValueError as error:
        return {"why": f"ncu's table was not understood: {error}", "table": shown.stdout[:2000]}


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


def kernels(machine: Machine, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return every kernel's launches and microseconds in one forward and backward, by torch's profiler.

    Args:
        machine: Where; in a dry run the operations on the CPU take the kernels' place.
        shapes: Of the maps.
    """
    wanted = DeviceType.CUDA if machine.is_gpu else DeviceType.CPU
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if machine.is_gpu else [])
    found = []
    for shape in shapes:
        contest = Contest(machine, BOTH, shape, DTYPE, LAYOUT, compiled=False)
        for provider in PROVIDERS:
            contest.rivals[provider].select()
            for _ in range(PROFILED):
                contest.step(provider)
            machine.synchronize()
            with profile(activities=activities) as record:
                for _ in range(PROFILED):
                    contest.step(provider)
                machine.synchronize()
            table: dict[str, list[float]] = {}
            for event in record.events() or ():
                if event.device_type == wanted:
                    row = table.setdefault(event.name, [0, 0.0])
                    row[0] += 1 / PROFILED
                    row[1] += event.time_range.elapsed_us() / PROFILED
            found.append({"shape": shape, "provider": provider, "kernels": table})
        machine.tidy()
    return {"regions": found}


def main(kind: str, shapes: Sequence[Sequence[int]]) -> None:
    """Call each provider on each map, with markers around each call for whoever counts."""
    machine = Machine(kind)
    for shape in shapes:
        contest = Contest(machine, BOTH, shape, DTYPE, LAYOUT, compiled=False)
        x, gradient = contest.maps[0], contest.gradient
        for provider in PROVIDERS:
            rival = contest.rivals[provider]
            rival.select()
            inputs = [x, *rival.module.parameters()]
            contest.step(provider)
            for _ in range(REPEATS):
                y = _marked(machine, partial(rival.module, x))
                _marked(machine, partial(torch.autograd.grad, y, inputs, gradient))
        machine.tidy()


def _marked(machine: Machine, call: Callable[[], Any]) -> Any:
    machine.flush()
    machine.synchronize()
    if machine.is_gpu:
        torch.cuda.profiler.start()
        torch.cuda._sleep(1)
    found = call()
    if machine.is_gpu:
        torch.cuda._sleep(1)
    machine.flush()
    machine.synchronize()
    if machine.is_gpu:
        torch.cuda.profiler.stop()
    return found


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
