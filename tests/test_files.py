"""Atomic writes, under the failures that they are for."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from cbam.files import remove_leftovers, write_atomically


def test_writes_bytes_and_text_and_makes_folders(tmp_path):
    assert write_atomically(tmp_path / "a" / "b" / "x.bin", b"\0\xff").read_bytes() == b"\0\xff"
    assert write_atomically(tmp_path / "x.txt", "é").read_bytes() == "é".encode()


def test_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    write_atomically(target, "a long first content")
    write_atomically(target, "short")
    assert target.read_text() == "short"
    assert list(tmp_path.iterdir()) == [target]


def test_has_the_permissions_of_an_ordinary_new_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    written = write_atomically(tmp_path / "written", "x")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failure_keeps_the_old_file_and_no_leftover(tmp_path, monkeypatch, failing):
    target = write_atomically(tmp_path / "result.json", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (type(target), "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_killed_in_the_middle_of_a_write(tmp_path):
    target = write_atomically(tmp_path / "state.pt", "old")
    program = (
        "import os, signal, sys\n"
        "from cbam.files import write_atomically\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], 'new')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "the killed writer leaves its temporary file"
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_may_be_folders_with_leftovers_in_them(tmp_path):
    torn = tmp_path / "checkpoints" / ".step-000000002.17.tmp"
    (torn / ".deeper.18.tmp").mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    (torn / ".state.pt.17.tmp").write_bytes(b"half")
    good = tmp_path / "checkpoints" / "step-000000001"
    good.mkdir()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "checkpoints", good]


def test_leftovers_are_only_temporary_files(tmp_path):
    kept = [tmp_path / name for name in ("notes.tmp", ".hidden", "result.json", ".lock")]
    for file in kept:
        file.write_text("mine")
    remove_leftovers(tmp_path)
    assert all(file.exists() for file in kept)
