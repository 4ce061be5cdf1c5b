"""Whole runs, in this process and in one that gets killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from cbam.bench import measure, modules
from cbam.bench.cases import BOTH, FORWARD, Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.run import prepare
from cbam.errors import CBAMError
from cbam.runs.pool import run_tasks, worker_pool
from cbam.runs.progress import Progress


def config(path, **options):
    values = {
        "parts": ("modules",), "shapes": ("16x5x5",), "batch_size": 2, "rounds": 2, "threads": 1, "compile": False,
        "output": path,
    }  # fmt: skip
    return BenchConfig(**{**values, **options})


def progress():
    return Progress(Console(file=io.StringIO(), width=200))


def execute(config, command, progress):
    return prepare(config, command, progress).execute()


def test_a_run_writes_its_files(tmp_path):
    shown = progress()
    outcome = execute(config(tmp_path / "run"), ["cbam", "bench"], shown)
    assert [result.case.mode for result in outcome.results] == [FORWARD, FORWARD, BOTH, BOTH]
    files = {item.name for item in (tmp_path / "run").iterdir()} - {".lock"}
    assert files == {
        "bench.json", "bench.csv", "bench.md", "bench.png", "bench.svg", "measurements.jsonl", "config.yaml",
        "env.json",
    }  # fmt: skip
    content = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert content["environment"]["command"] == ["cbam", "bench"]
    assert content["environment"]["machine"]["threads"] == 1
    assert "malloc" in content["environment"]["machine"]["allocator"]
    assert (
        "[4/4] modules forward+backward 2x16x5² float32 channels_last 1 thread"
        in shown.console.file.getvalue()
    )


def test_the_second_call_measures_nothing_again_and_another_part_joins(tmp_path, monkeypatch):
    first = execute(config(tmp_path), [], progress())
    shown = progress()
    assert execute(config(tmp_path), [], shown).results == first.results
    assert "4 measurements, 4 of them done before\nnote: nothing is left" in shown.console.file.getvalue()
    monkeypatch.setitem(measure.MEASURE, "network", lambda case, *_: Result(case, {"plain": [1.0]}))
    both = execute(config(tmp_path, parts=("network",)), [], progress())
    assert both.results[:4] == first.results
    assert {result.case.part for result in both.results} == {"modules", "network"}


def test_what_was_measured_before_an_error_is_kept_and_written(tmp_path, monkeypatch):
    real, calls = modules.measure, []

    def breaks(case, config, device):
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(case, config, device)

    monkeypatch.setitem(measure.MEASURE, "modules", breaks)
    with pytest.raises(KeyboardInterrupt):
        execute(config(tmp_path), [], progress())
    assert len(json.loads((tmp_path / "bench.json").read_text())["results"]) == 2
    assert len(execute(config(tmp_path), [], progress()).results) == 4
    assert len(calls) == 3 + 2


def test_other_settings_are_refused_before_any_work(tmp_path, monkeypatch):
    execute(config(tmp_path), [], progress())
    monkeypatch.setitem(measure.MEASURE, "modules", None)
    with pytest.raises(CBAMError, match="rounds: 2 there, 4 now"):
        execute(config(tmp_path, rounds=4), [], progress())
    with pytest.raises(CBAMError, match="unknown model 'resnet5'"):
        execute(config(tmp_path / "new", parts=("network",), model="resnet5"), [], progress())
    assert not (tmp_path / "new").exists()


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    execute(config(tmp_path, threads=before + 1), [], progress())
    assert torch.get_num_threads() == before


def cases(folder):
    file = folder / "measurements.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_after_kill_9_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "cbam", "bench", "--quick", "--parts", "modules", "--threads", "1"]
    command += ["--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(cases(tmp_path / "run")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = cases(tmp_path / "run")
    assert 2 <= len(kept) < 8
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = [line for line in kept if line.endswith("}")]
    assert f"8 measurements, {len(whole)} of them done before" in done.stderr
    assert cases(tmp_path / "run")[: len(whole)] == whole, "measured once, kept as it was"
    assert len(cases(tmp_path / "run")) == 8
    assert "forward+backward, channels_last" in done.stdout


@pytest.mark.slow
def test_compiling_beforehand_fills_the_cache(tmp_path):
    case = Case("modules", "", FORWARD, (1, 4, 3, 3), "float32", "contiguous", 1)
    answers = []
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with worker_pool(1, environment, tmp_path / "log") as pool:
        tasks = list(measure.compiling(case, config(tmp_path, compile=True)))
        run_tasks(tasks, pool, lambda task, answer: answers.append(answer.error))
    assert answers == [""]
    if not list((tmp_path / "cache").rglob("*.so")):
        pytest.skip("nothing compiles here")


def test_a_budget_ends_the_run_and_names_what_is_left(tmp_path):
    found = execute(config(tmp_path, budget=1e-6), [], progress())
    assert found.results == []
    assert len(found.left) == 4
    assert set(found.left.values()) == {"not enough time: needs 6 s, 0 s are left"}


def test_networks_are_compiled_one_by_one():
    case = Case("network", "compiled", "inference", (1, 3, 32, 32), "bfloat16", "channels_last", 0)
    tasks = list(measure.compiling(case, BenchConfig(device="dry-run")))
    assert list(measure.compiling(replace(case, study=""), BenchConfig(device="dry-run"))) == []
    assert [task.arguments[2] for task in tasks] == ["plain", "cbam operator", "careful"]
