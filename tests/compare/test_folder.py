from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from cbam.compare.config import CompareConfig
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.errors import CBAMError
from cbam.runs.folder import FolderInUse

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom cbam.compare.folder import CompareFolder\n"
    "with CompareFolder(Path(sys.argv[1])).locked():\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def folder(tmp_path):
    return CompareFolder(tmp_path / "run")


def test_a_second_process_is_refused_and_a_killed_one_does_not_count(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"process {holder.pid} on ") as refused, folder.locked():
            pass
        assert refused.value.exit_code == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with folder.locked():
        assert f"process {os.getpid()} on " in (folder.path / ".lock").read_text()


def test_the_lock_removes_the_leftovers_of_killed_writers(folder):
    cell = folder.cell(Cell("cbam", 0))
    cell.mkdir(parents=True)
    leftover = cell / ".state.pt.123.tmp"
    leftover.write_text("half")
    with folder.locked():
        assert not leftover.exists()


PREPARED = {"augment": "none"}  # without it the settings are those of an earlier version


def test_another_configuration_is_refused_by_the_names_of_the_fields(folder):
    folder.path.mkdir()
    assert folder.check_settings({**PREPARED, "epochs": 1, "seeds": 2}, CompareConfig) == {}
    folder.open({**PREPARED, "epochs": 1, "lr": 0.1, "seeds": 2}, {})
    assert (
        folder.check_settings({**PREPARED, "epochs": 1, "lr": 0.1, "seeds": 5}, CompareConfig)["seeds"] == 2
    )
    with pytest.raises(CBAMError, match=r"epochs: 1 there, 3 now; lr: 0.1 there, 0.2 now.*--output"):
        folder.check_settings({**PREPARED, "epochs": 3, "lr": 0.2, "seeds": 2}, CompareConfig)


def test_somebody_elses_folder_is_left_alone(folder, tmp_path):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("years of work")
    with pytest.raises(CBAMError, match="is not empty and holds no run"):
        folder.check_settings({}, CompareConfig)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CBAMError, match="is a file"):
        CompareFolder(file).check_settings({}, CompareConfig)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\0"])
def test_a_damaged_configuration_is_explained(folder, text):
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text(text)
    with pytest.raises(CBAMError, match=r"config.yaml is damaged"):
        folder.check_settings({"epochs": 1}, CompareConfig)


@pytest.mark.parametrize("content", [b"", b'{"variant": "cb', b"\xff\xfe\x00", b"[1, 2]", b"{}", b'"text"'])
def test_a_damaged_result_is_no_result(folder, content):
    cell = Cell("cbam", 1)
    folder.cell(cell).mkdir(parents=True)
    (folder.cell(cell) / "result.json").write_bytes(content)
    assert folder.result(cell) is None
    assert folder.result(cell) is None, "a second look neither"
    assert not (folder.cell(cell) / "result.json").exists(), "the report would stumble over it"


def test_a_damaged_result_is_told_and_kept_aside(folder, caplog):
    cell = Cell("cbam", 1)
    folder.cell(cell).mkdir(parents=True)
    (folder.cell(cell) / "result.json").write_text('{"variant": "cb')
    folder.result(cell)
    assert "result.json is damaged" in caplog.text
    assert (folder.cell(cell) / "result.json.damaged").read_text() == '{"variant": "cb'


def test_results_come_back(folder):
    result = {"variant": "cbam", "seed": 0, "val_accuracy": 0.5}
    folder.write_json("cells/cbam-seed0/result.json", result)
    assert folder.result(Cell("cbam", 0)) is None, "without its weights the model is not done"
    save_file({"weight": torch.rand(9)}, folder.cell(Cell("cbam", 0)) / "model.safetensors")
    assert folder.result(Cell("cbam", 0)) == result
    assert folder.result(Cell("cbam", 1)) is None


def test_a_result_with_damaged_weights_is_no_result(folder, caplog):
    folder.write_json("cells/cbam-seed0/result.json", {"variant": "cbam", "seed": 0, "val_accuracy": 0.5})
    weights = folder.cell(Cell("cbam", 0)) / "model.safetensors"
    save_file({"weight": torch.rand(99)}, weights)
    weights.write_bytes(weights.read_bytes()[:-8])
    assert folder.result(Cell("cbam", 0)) is None
    assert "the model is trained again" in caplog.text


def test_values_that_are_no_json_are_refused(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("costs.json", {"macs": float("nan")})
