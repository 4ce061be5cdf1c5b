"""Results of a run that never took place, with times that are easy to calculate with."""

from __future__ import annotations

import pytest

from cbam.bench.cases import BOTH, INFERENCE, TRAINING, Result, cases
from cbam.bench.config import BenchConfig

MODULE_MS = {
    "copy": 2.0, "copy into": 1.0, "cbam operator": 4.0, "cbam eager": 20.0, "textbook": 48.0, "careful": 30.0,
    "timm": 32.0, "cbam compiled": 6.0, "textbook compiled": 14.0, "careful compiled": 12.0, "timm compiled": 13.0,
}  # fmt: skip
HOST_MS = {"copy": 0.001, "cbam operator": 0.008, "textbook": 0.1, "relu": 0.002, "batch norm": 0.003,
           "batch norm with CBAM": 0.009}  # fmt: skip
NETWORK_MS = {"plain": 100.0, "cbam operator": 105.0, "textbook": 140.0, "se": 110.0}


def made_up(case):
    """A result whose rounds are 1, 2 and 3 times as slow as each other, as on a machine that gets busier."""
    if case.part == "modules":
        times = {
            k: v * (3 if case.mode == BOTH else 1) if "copy" not in k else v for k, v in MODULE_MS.items()
        }
    elif case.part == "network":
        times = NETWORK_MS
    elif case.part == "host":
        times = HOST_MS
    else:
        n, c, h, w = case.shape
        size = n * c * h * w / 1e5
        times = {"copy": size, "cbam operator": 3 * size}
        if case.study == "threads":
            times |= {"copy, 1 thread": 1.5 * size, "cbam operator, 1 thread": 3 * 1.75 * size}
    result = Result(
        case, {k: [v, 2 * v, 3 * v] for k, v in times.items()}, input_bytes=1000, finished="2026-01-01"
    )
    if case.mode == BOTH and case.part == "modules":
        result.saved_bytes = {name: 1020 for name in times if not name.startswith("copy")}
        result.peak_bytes = {name: 2500 for name in times if not name.startswith("copy")}
    if case.mode == TRAINING:
        result.saved_bytes = {"plain": 1000, "cbam operator": 1015, "textbook": 1500, "se": 1300}
        result.peak_bytes = {"plain": 2000, "cbam operator": 2010, "textbook": 3000, "se": 2600}
    assert case.mode != INFERENCE or not result.saved_bytes
    return result


@pytest.fixture
def results():
    return [made_up(case) for case in cases(BenchConfig(threads=2))]
