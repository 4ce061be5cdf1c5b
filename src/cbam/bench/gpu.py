"""On a GPU only: the checks before anything is timed, and every kernel's time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from cbam.bench.baselines import COPY, TEXTBOOK, ours_of
from cbam.bench.cases import Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device
from cbam.bench.modules import Comparison
from cbam.evaluate.dram import run_quietly
from cbam.evaluate.timing import kernel_times
from cbam.ops.dispatch import set_backend

ROOT = Path(__file__).resolve().parents[3]
FIRST = ROOT / "tests/ops/test_first_on_a_gpu.py"
CHECKS = (FIRST, ROOT / "tests/ops/test_real_shapes.py")
"""In the order in which they run: first what has changed since a GPU was last at hand."""
CHECKING_SECONDS = 150
OK, IMPRECISE, WRONG, SKIPPED = "ok", "imprecise", "wrong", "skipped"


def check(case: Case, config: BenchConfig, device: Device) -> Result:
    """Run the operator's tests on real shapes for the case's dtype and memory format; `extra` has what they found."""
    if not all(file.exists() for file in CHECKS) or not importlib.util.find_spec("pytest"):
        return Result(case, notes=[f"the operator was not checked: needs pytest and {CHECKS[-1]}"])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        wanted = f"{FIRST.stem} or ({case.dtype} and {case.memory_format})"
        only = [*map(str, CHECKS), "-k", wanted, "--device", device.torch.type]
        command = [sys.executable, "-m", "pytest", *only, "-q", "-p", "no:cacheprovider"]
        try:
            run = run_quietly([*command, f"--junitxml={report}"], CHECKING_SECONDS, CHECKS[-1].parents[2])
        except subprocess.TimeoutExpired:
            return _broken(case, "took too long")
        if not report.exists():
            return _broken(case, run.stdout[-500:])
        return Result(case, extra=read_report(report.read_text(encoding="utf-8")))


def _broken(case: Case, why: str) -> Result:
    return Result(case, extra={"counts": {WRONG: 1}, "failures": {"the checks": why}})


def read_report(text: str) -> dict[str, Any]:
    """Return the counts, and everything that did not pass with its reason, of a JUnit report of pytest.

    >>> one = '<testcase name="a"/><testcase name="b"><failure message="y: too far"/></testcase>'
    >>> read_report(f"<testsuites><testsuite>{one}</testsuite></testsuites>")
    {'counts': {'ok': 1, 'wrong': 1}, 'failures': {'b': 'wrong: y: too far'}}
    """
    counts: Counter[str] = Counter()
    reasons = {}
    for test in ET.fromstring(text).iter("testcase"):
        status = OK
        for outcome in test:
            if outcome.tag in ("failure", "error", "skipped"):
                kind = outcome.get("type", "")
                status = WRONG if outcome.tag != "skipped" else IMPRECISE if "xfail" in kind else SKIPPED
                reasons[test.get("name", "")] = f"{status}: {outcome.get('message', '')}"
        counts[status] += 1
    return {"counts": dict(counts), "failures": reasons}


def kernels(case: Case, config: BenchConfig, device: Device) -> Result:
    """Return every kernel's launches and microseconds in one forward and backward, and those of a copy of the map."""
    comparison, tables = Comparison(case, device, ()), {}
    for name in (ours_of(comparison.baselines), TEXTBOOK, COPY):
        if name != COPY:
            comparison.baselines[name].select()
        tables[name] = kernel_times(partial(comparison.step, name), device.torch)
    set_backend("auto")
    return Result(case, input_bytes=comparison.x.nbytes, extra={"kernels": tables})
