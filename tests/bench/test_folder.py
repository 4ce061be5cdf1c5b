"""The run's folder: resume, refusal, damage, and the files at the end."""

from __future__ import annotations

import csv
import json

import pytest

from cbam.bench.cases import BOTH, TRAINING
from cbam.bench.config import BenchConfig
from cbam.bench.folder import COLUMNS, BenchFolder, csv_rows, load
from cbam.errors import CBAMError

IDENTITY = {"rounds": 3, "torch": "2.15"}
ENVIRONMENT = {
    "started": "then",
    "packages": {"torch": "2.15", "torch-cbam": "0.1"},
    "machine": {"cpu": "A, fast one"},
    "git": "abc",
}


def begun(path, identity=IDENTITY, restart=False):
    folder = BenchFolder(path)
    folder.check_settings(identity, BenchConfig, restart)
    with folder.locked():
        if restart:
            folder.drop()
        folder.open(identity, ENVIRONMENT)
    return folder


def test_what_was_added_is_there_for_the_next_call(tmp_path, results):
    folder = begun(tmp_path / "run")
    for result in results[:3]:
        folder.metrics.append(result.to_json())
    again = begun(tmp_path / "run")
    assert list(again.results().values()) == results[:3]


def test_another_run_is_refused_with_what_differs(tmp_path, results):
    begun(tmp_path).metrics.append(results[0].to_json())
    with pytest.raises(CBAMError, match=r"rounds: 3 there, 5 now.*--restart"):
        BenchFolder(tmp_path).check_settings({**IDENTITY, "rounds": 5}, BenchConfig, False)
    with pytest.raises(CBAMError, match=r"torch: 2.15 there, 2.16 now"):
        BenchFolder(tmp_path).check_settings({**IDENTITY, "torch": "2.16"}, BenchConfig, False)
    assert len(BenchFolder(tmp_path).results()) == 1


def test_restart_drops_the_old_run_and_nothing_else(tmp_path, results):
    folder = begun(tmp_path)
    folder.metrics.append(results[0].to_json())
    folder.write_outputs(results, IDENTITY)
    (tmp_path / "notes.txt").write_text("mine")
    again = begun(tmp_path, {**IDENTITY, "rounds": 5}, restart=True)
    assert again.results() == {}
    assert not (tmp_path / "bench.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("restart", [False, True])
def test_the_folders_of_others_are_left_alone(tmp_path, restart):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CBAMError, match="is not empty and holds no run"):
        BenchFolder(tmp_path).check_settings(IDENTITY, BenchConfig, restart)
    with pytest.raises(CBAMError, match="is a file"):
        BenchFolder(tmp_path / "thesis.tex").check_settings(IDENTITY, BenchConfig, restart)


def test_a_torn_last_line_is_dropped(tmp_path, results):
    folder = begun(tmp_path)
    folder.metrics.append(results[0].to_json())
    with folder.metrics.path.open("a") as stream:
        stream.write(json.dumps(results[1].to_json())[:-40])
    again = begun(tmp_path)
    again.metrics.append(results[2].to_json())
    assert list(again.results().values()) == [results[0], results[2]]


def test_a_later_session_is_kept_beside_the_first(tmp_path):
    begun(tmp_path)
    folder = BenchFolder(tmp_path)
    folder.open(IDENTITY, {**ENVIRONMENT, "started": "later"})
    assert folder.read_json("env.json") == {**ENVIRONMENT, "continued": [{"started": "later"}]}


def test_the_json_holds_everything(tmp_path, results):
    folder = begun(tmp_path)
    folder.write_outputs(results, IDENTITY)
    assert load(tmp_path) == results
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["settings"] == IDENTITY
    assert content["environment"] == ENVIRONMENT


def test_a_folder_without_a_run_says_what_to_type(tmp_path):
    with pytest.raises(CBAMError, match=r"holds no run .* cbam bench --output"):
        load(tmp_path)
    (tmp_path / "bench.json").write_text("[1]")
    with pytest.raises(CBAMError, match="holds no run"):
        load(tmp_path)


def test_the_csv_is_the_long_table(tmp_path, results):
    begun(tmp_path).write_outputs(results, IDENTITY)
    with (tmp_path / "bench.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    timed = [row for row in rows if row["metric"] == "time"]
    assert len(timed) == sum(len(result.samples_ms) for result in results)
    [row] = [
        row
        for row in timed
        if (row["part"], row["provider"], row["mode"], row["channels"], row["memory_format"])
        == ("modules", "textbook", "forward", "512", "contiguous")
    ]
    assert (row["p25"], row["p50"], row["p75"]) == ("72.0", "96.0", "120.0")
    assert (row["ratio_p25"], row["ratio_p50"], row["ratio_p75"]) == ("24.0", "24.0", "24.0")
    expected = {
        "batch": "8", "height": "28", "width": "28", "dtype": "float32", "threads": "2", "unit": "ms", "samples": "3",
        "reference": "copy", "torch": "2.15", "torch_cbam": "0.1", "commit": "abc", "cpu": "A, fast one",
        "finished": "2026-01-01",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_bytes_are_in_the_csv_relative_to_the_map_or_to_the_plain_network(results):
    rows = [row for row in csv_rows(results, ENVIRONMENT) if row["metric"] != "time"]
    module = next(row for row in rows if row["mode"] == BOTH and row["metric"] == "saved")
    assert (module["p50"], module["reference"], module["ratio_p50"]) == (1020, "map", 1.02)
    network = next(row for row in rows if row["mode"] == TRAINING and row["provider"] == "textbook")
    assert (network["p50"], network["reference"], network["ratio_p50"]) == (1500, "plain", 1.5)
    assert {row["metric"] for row in rows} == {"saved", "peak"}


def test_a_folder_of_before_version_0_1_is_known_by_its_settings(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"identity": IDENTITY, "environment": ENVIRONMENT}))
    assert BenchFolder(tmp_path).settings() == IDENTITY
    with pytest.raises(CBAMError, match="rounds: 3 there, 4 now"):
        BenchFolder(tmp_path).check_settings({**IDENTITY, "rounds": 4}, BenchConfig, False)
