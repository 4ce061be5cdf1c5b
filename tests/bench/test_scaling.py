"""Threads, batches and maps."""

from __future__ import annotations

import pytest
import torch

from cbam.bench import modules
from cbam.bench.cases import BOTH, FORWARD, Case
from cbam.bench.config import BenchConfig
from cbam.bench.device import device_of
from cbam.bench.modules import measure_scaling
from cbam.bench.summary import slope


def test_one_and_several_threads_are_really_used(monkeypatch):
    used = {}
    real = modules.interleave

    def look(candidates, **options):
        for name, candidate in candidates.items():
            candidate.prepare()
            used[name] = torch.get_num_threads()
        times = real(candidates, **options)
        torch.set_num_threads(1)  # as the last candidate may leave it
        return times

    monkeypatch.setattr(modules, "interleave", look)
    before = torch.get_num_threads()
    try:
        case = Case("scaling", "threads", FORWARD, (1, 16, 8, 8), "float32", "contiguous", 2)
        result = measure_scaling(case, BenchConfig(threads=2, rounds=2), device_of("cpu"))
        assert torch.get_num_threads() == 2, "the run's number, for the next case"
    finally:
        torch.set_num_threads(before)
    assert {name: n for name, n in used.items() if "cbam" not in name} == {"copy": 2, "copy, 1 thread": 1}
    assert sorted(used.values()) == [1, 1, 2, 2]
    assert set(result.samples_ms) == set(used)


def test_a_size_is_timed_beside_a_copy():
    case = Case("scaling", "batch", BOTH, (3, 16, 8, 8), "float32", "channels_last", 1)
    result = measure_scaling(case, BenchConfig(threads=1, rounds=2), device_of("cpu"))
    assert len(result.samples_ms) == 2
    assert "copy" in result.samples_ms


def test_the_slope_is_the_exponent():
    sizes = [1, 2, 4, 8]
    assert slope(sizes, [3.0 * n for n in sizes]) == pytest.approx(1.0)
    assert slope(sizes, [3.0 * n**2 for n in sizes]) == pytest.approx(2.0)
    assert slope(sizes, [5.0] * 4) == pytest.approx(0.0, abs=1e-12)
