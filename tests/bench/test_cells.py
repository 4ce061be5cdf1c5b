"""Which measurements a run has, and what a result says."""

from __future__ import annotations

import json

import pytest

from cbam.bench.cells import BOTH, FORWARD, Cell, Result, geometric_mean, grid
from cbam.bench.settings import BenchConfig


def test_the_default_run():
    cells = grid(BenchConfig(threads=2))
    count = {part: sum(cell.part == part for cell in cells) for part in ("modules", "network", "scaling")}
    assert count == {"modules": 2 * 2 * 4, "network": 2 * 2, "scaling": 2 * 2 * (1 + 7 + 5)}
    assert len({cell.name for cell in cells}) == len(cells)
    sizes = {cell.shape for cell in cells if cell.part == "modules"}
    assert sizes == {(8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)}
    grown = [cell.shape[0] for cell in cells if cell.study == "batch" and cell.mode == FORWARD]
    assert grown == [1, 2, 4, 8, 16, 32, 64] * 2
    assert {cell.shape for cell in cells if cell.study == "threads"} == {(1, 256, 56, 56)}


def test_parts_and_one_thread():
    assert {cell.part for cell in grid(BenchConfig(parts=("scaling",), threads=2))} == {"scaling"}
    assert not [cell for cell in grid(BenchConfig(threads=1)) if cell.study == "threads"]


def test_a_result_survives_json():
    cell = Cell("modules", "", BOTH, (8, 16, 7, 7), "float32", "contiguous", 2)
    result = Result(cell, {"copy": [1.0, 2.0]}, {"cbam eager": 5}, {"cbam eager": 7}, 12, "now", ["a note"])
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_ratios_are_medians_over_rounds_and_not_ratios_of_medians():
    cell = Cell("modules", "", FORWARD, (8, 16, 7, 7), "float32", "contiguous", 2)
    result = Result(
        cell, {"copy": [1.0, 10.0, 3.0], "textbook": [6.0, 20.0, 30.0], "careful": [3.0, 2.0, 1.0]}
    )
    assert result.ratio("textbook") == pytest.approx(6.0)
    assert result.quartiles("textbook")[1] / result.quartiles("copy")[1] == pytest.approx(20 / 3)
    assert result.ratio("textbook", "careful") == pytest.approx(10.0)
    network = Result(Cell("network", "", "inference", (8, 3, 9, 9), "float32", "contiguous", 2))
    assert network.cell.reference == "plain"


def test_the_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
