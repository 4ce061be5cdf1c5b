"""A run's folder whose files are damaged, or that is deleted under the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cbam.errors import CBAMError
from cbam.runs.config import RunConfig
from cbam.runs.folder import FolderLost, RunFolder


@pytest.mark.parametrize(
    "text",
    ["a: 2001-99-99", "a: !!int abc", "a: !!bool x", f"a: {'9' * 5000}", "a: " + "[" * 20_000, "a: [", "- a", "",
     "a: &a [x]\nb: *a"],
)  # fmt: skip
def test_damaged_settings_are_none(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert RunFolder(tmp_path).settings() == {}


def test_a_name_that_is_too_long_is_told():
    with pytest.raises(CBAMError, match=r"\(5,000 characters\)' cannot be read: File name too long"):
        RunFolder(Path("a" * 5000)).check_settings({}, RunConfig)


def opened(path):
    folder = RunFolder(path)
    folder.open({"epochs": 3}, {})
    folder.check_kept()
    return folder


def replaced(path):
    path.rename(path.with_name("moved"))
    shutil.copytree(path.with_name("moved"), path)


@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        lambda path: path.rename(path.with_name("moved")),
        lambda path: [file.unlink() for file in path.iterdir()],
        replaced,
    ],
    ids=["deleted", "moved", "emptied", "replaced"],
)
def test_a_folder_that_is_lost_is_noticed(tmp_path, harm):
    folder = opened(tmp_path / "run")
    harm(folder.path)
    with pytest.raises(FolderLost, match="was deleted, moved or emptied while this run was writing"):
        folder.check_kept()


def test_new_files_do_not_make_another_folder(tmp_path):
    folder = opened(tmp_path)
    folder.write_json("more.json", {})
    (tmp_path / ".lock").touch()
    folder.open({"epochs": 3}, {})
    folder.check_kept()


def test_a_folder_that_this_process_did_not_open_is_not_judged(tmp_path):
    RunFolder(tmp_path / "absent").check_kept()
