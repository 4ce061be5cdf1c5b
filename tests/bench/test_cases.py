"""Which measurements a run has, and what a result says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby

import pytest

from cbam.bench.cases import BOTH, FORWARD, GRAPH, HOT, INFERENCE, TRAINING, UNCOMPILED, Case, Result, cases
from cbam.bench.config import BenchConfig, defaults
from cbam.evaluate.timing import geometric_mean


def test_the_default_run():
    found = cases(BenchConfig(threads=2))
    count = {
        part: sum(case.part == part for case in found) for part in ("modules", "network", "host", "scaling")
    }
    assert count == {"modules": 2 * 2 * 4, "network": 2 * 2, "host": 2, "scaling": 2 * 2 * (1 + 7 + 5)}
    assert len({case.name for case in found}) == len(found) == sum(count.values())
    sizes = {case.shape for case in found if case.part == "modules"}
    assert sizes == {(8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)}
    grown = [case.shape[0] for case in found if case.study == "batch" and case.mode == FORWARD]
    assert grown == [1, 2, 4, 8, 16, 32, 64] * 2
    assert {case.shape for case in found if case.study == "threads"} == {(1, 256, 56, 56)}


def test_parts_and_one_thread():
    assert {case.part for case in cases(BenchConfig(parts=("scaling",), threads=2))} == {"scaling"}
    assert not [case for case in cases(BenchConfig(threads=1)) if case.study == "threads"]


def test_what_compiles_for_minutes_is_measured_on_a_cpu_if_asked_for():
    asked = BenchConfig(parts=("code", "compiled"), memory_formats=("channels_last",), threads=2)
    found = [(case.part, case.study, case.mode) for case in cases(asked)]
    assert found == [
        ("network", "compiled", TRAINING), ("network", "compiled", INFERENCE), ("code", "", ""),
    ]  # fmt: skip
    assert [case.part for case in cases(replace(asked, compile=False))] == ["code"]
    assert {case.asked_by for case in cases(BenchConfig())}.isdisjoint(asked.parts)


def test_on_a_gpu_the_most_important_comes_first():
    """The order that the first run on one taught."""
    found = cases(defaults("cuda").in_effect())
    groups = [
        f"{part} {study}".strip() for (part, study), _ in groupby(found, lambda case: (case.part, case.study))
    ]
    assert groups[:10] == [
        "checks", "kernels", "modules", "network CUDA graph", "network compiled", "host", "network", "kernels",
        "traffic", "network compiled, reduce-overhead",
    ]  # fmt: skip
    assert [case.shape[0] for case in found if case.part == "kernels"] == [128] * 4 + [1] * 4
    assert {case.shape[0] for case in found if case.part == "modules"} == {128, 32, 1, 256}
    assert {case.shape[0] for case in found if case.part == "network"} == {128, 32, 1, 256}
    kinds = {(case.dtype, case.memory_format) for case in found if case.part == "modules"}
    assert kinds == {("bfloat16", "channels_last"), ("bfloat16", "contiguous"), ("float32", "channels_last")}
    assert found[2].name == "kernels forward+backward 128x512x28² bfloat16 channels_last", "no threads"


@pytest.mark.parametrize(
    "config", [defaults("cuda"), replace(defaults("cuda"), quick=True), defaults("dry-run")]
)
def test_no_two_cases_have_one_name(config):
    names = [case.name for case in cases(config.in_effect())]
    assert len(set(names)) == len(names)


def test_a_result_survives_json():
    case = Case("modules", "", BOTH, (8, 16, 7, 7), "float32", "contiguous", 2)
    result = Result(case, {"copy": [1.0, 2.0]}, {"cbam eager": 5}, {"cbam eager": 7}, 12, "now", ["a note"])
    content = json.loads(json.dumps(result.to_json()))
    assert Result.from_json(content) == result
    content["cell"] = content.pop("case")  # as before version 0.1
    del content["extra"]
    assert Result.from_json(content) == result


def test_ratios_are_medians_over_rounds_and_not_ratios_of_medians():
    case = Case("modules", "", FORWARD, (8, 16, 7, 7), "float32", "contiguous", 2)
    result = Result(
        case, {"copy": [1.0, 10.0, 3.0], "textbook": [6.0, 20.0, 30.0], "careful": [3.0, 2.0, 1.0]}
    )
    assert result.ratio("textbook") == pytest.approx(6.0)
    assert result.quartiles("textbook")[1] / result.quartiles("copy")[1] == pytest.approx(20 / 3)
    assert result.ratio("textbook", "careful") == pytest.approx(10.0)
    network = Result(Case("network", "", "inference", (8, 3, 9, 9), "float32", "contiguous", 2))
    assert network.case.reference == "plain"


def test_the_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_each_way_of_timing_has_its_own_reference():
    case = Case("modules", "", FORWARD, (8, 16, 7, 7), "bfloat16", "channels_last", 0)
    times = {"copy": 1.0, "textbook": 6.0, "copy" + GRAPH: 2.0, "textbook" + GRAPH: 4.0, "copy" + HOT: 1.0,
             "textbook" + UNCOMPILED: 9.0}  # fmt: skip
    result = Result(case, {name: [time] for name, time in times.items()})
    assert result.ways == ["", GRAPH, HOT]
    assert [result.of_way(way).ratio("textbook") for way in ("", GRAPH)] == [6.0, 2.0]
    assert result.of_way(HOT).samples_ms == {"copy": [1.0]}
