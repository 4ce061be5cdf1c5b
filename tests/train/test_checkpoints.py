from __future__ import annotations

import json
import logging
import os
import signal

import pytest

from cbam.train.checkpoints import Checkpoints, damage

FILES = {"model.safetensors": b"weights" * 100, "training.pt": b"state" * 100}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_a_checkpoint_is_whole_and_checksummed(checkpoints):
    folder = checkpoints.write(7, FILES)
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["step"] == 7
    assert damage(folder) == ""
    assert checkpoints.newest_good() == folder


def test_nothing_there_is_no_checkpoint(checkpoints, caplog):
    assert checkpoints.newest_good() is None
    assert not caplog.records


def test_the_newest_stay(checkpoints):
    for step in (1, 2, 30, 100):
        checkpoints.write(step, FILES)
    assert [path.name for path in checkpoints.newest_first()] == ["step-000000100", "step-000000030"]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", [truncate, flip, os.remove, lambda file: file.write_bytes(b"")])
def test_a_damaged_one_is_named_and_the_one_before_taken(checkpoints, caplog, name, harm):
    before, newest = checkpoints.write(1, FILES), checkpoints.write(2, FILES)
    harm(newest / name)
    with caplog.at_level(logging.WARNING, "cbam"):
        found = checkpoints.newest_good()
    if name == "manifest.json" and harm is flip:  # one bit in a name: then the file of that name is missing
        assert found in (before, newest)
        return
    assert found == before
    assert "step-000000002" in caplog.text
    assert name in caplog.text
    checkpoints.write(2, FILES)
    assert checkpoints.newest_good() == newest


def test_a_full_disk_leaves_the_earlier_ones(checkpoints, monkeypatch):
    first = checkpoints.write(1, FILES)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.write(2, FILES)
    assert checkpoints.newest_good() == first
    assert list(checkpoints.path.iterdir()) == [first], "what was written so far would keep the disk full"


def test_a_file_that_may_not_grow_leaves_nothing_either(checkpoints):
    """As a full disk, but real: the system refuses the bytes beyond the limit."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.write(2, FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(checkpoints.path.iterdir()) == []


def test_a_killed_process_leaves_what_the_next_one_sweeps_away(checkpoints):
    checkpoints.path.mkdir()
    (checkpoints.path / ".step-000000001.17.tmp").mkdir()
    checkpoints.write(3, FILES)
    assert [path.name for path in checkpoints.path.iterdir()] == ["step-000000003"]


def test_clear_takes_all_away(checkpoints):
    checkpoints.write(1, FILES)
    checkpoints.clear()
    assert not checkpoints.path.exists()
    checkpoints.clear()
