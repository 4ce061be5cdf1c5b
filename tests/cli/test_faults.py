"""Faults of the machine under `cbam train`: a clear message, and the same command then ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_train import TASK, environment, numbers, same
from tests.cli.test_train import straight as straight  # fixtures
from tests.cli.test_train import train as train
from tests.data.shards import tars

# Where the n-th batch is read.
FAULT = """
import os, pathlib, signal, torch
from cbam.data.{images} as Images
read, left = Images.__getitems__, [{batch}]
def faulty(self, batch):
    left[0] -= 1
    items = read(self, batch)
    if not left[0]:
        {fault}
    return items
Images.__getitems__ = faulty
"""


def fault(batch, what, images="memory import MemoryImages"):
    return FAULT.format(batch=batch, fault=what, images=images)


def goes_on(done, straight, folder):
    assert done.returncode == 0, done.stderr
    assert "resumes after" in done.stderr
    same(straight, folder)


def test_a_full_disk(straight, train, tmp_path):
    """A file system that holds some checkpoints and not the next; with more room the run ends as ever."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)]
    if (made := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small file system cannot be mounted: {made.stderr.strip()}")
    try:
        full = train(disk / "run", "--keep", "100")
        assert full.returncode == 1
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        assert not list((disk / "run").rglob(".*.tmp")), "what was written in part would keep the disk full"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        goes_on(train(disk / "run"), straight, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_killed_worker(straight, train, tmp_path):
    kill = fault(13, "os.kill(os.getpid(), signal.SIGKILL)")
    lost = train(tmp_path / "run", "--workers", "1", first=kill)
    assert lost.returncode == 1, lost.stderr
    assert "a process that loads images was killed or has crashed" in lost.stderr
    assert "Traceback" not in lost.stderr
    goes_on(train(tmp_path / "run"), straight, tmp_path / "run")


def test_a_batch_that_is_not_finite(straight, train, tmp_path):
    spoil = fault(4, "items = [(image * torch.nan, label) for image, label in items]")
    spoilt = train(tmp_path / "run", first=spoil)
    assert spoilt.returncode not in (0, 75), spoilt.stderr
    assert "the loss is nan in epoch 1, step 4" in spoilt.stderr
    assert "the images" in spoilt.stderr
    assert "Traceback" not in spoilt.stderr
    goes_on(train(tmp_path / "run"), straight, tmp_path / "run")


def test_a_shard_that_is_damaged_meanwhile(server, tmp_path):
    folder, run = tars.shard_folder(tmp_path / "shards", train=4, each=6), tmp_path / "run"
    task = [
        "--data",
        f"shards:{folder}",
        "--model",
        "timm/test_convnext",
        "--image-size",
        "32",
        "--epochs",
        "3",
    ]
    task += ["--batch-size", "6", "--device", "cpu", "--save-every", "1", "--seed", "0"]
    assert server.run("train", *task, "--output", tmp_path / "straight").returncode == 0
    sound = (folder / "train-002.tar").read_bytes()
    harm = f"pathlib.Path({str(folder / 'train-002.tar')!r}).write_bytes(b'x' * {len(sound)})"
    harmed = server.run(
        *("train", *task, "--output", run, "--workers", "1"),
        first=fault(6, harm, "shards.dataset import ShardImages"),
    )  # fmt: skip
    assert harmed.returncode in (1, 2), harmed.stderr
    assert "train-002.tar is not the file that was indexed" in harmed.stderr
    assert "Traceback" not in harmed.stderr
    (folder / "train-002.tar").write_bytes(sound)
    done = server.run("train", *task, "--output", run)
    assert done.returncode == 0, done.stderr
    assert "resumes after" in done.stderr
    assert numbers(run) == numbers(tmp_path / "straight")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_process_of_two_is_lost(train, tmp_path):
    options = ["--mixup", "0", "--epochs", "6"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "cbam", "train"]
    with (tmp_path / "said").open("w") as said:
        both = subprocess.Popen(
            [sys.executable, *launch, *TASK, *options, "--output", str(tmp_path / "two")],
            env=environment(), stdout=said, stderr=said,
        )  # fmt: skip
        try:
            until = time.monotonic() + 200
            while not list((tmp_path / "two" / "checkpoints").glob("step-*")):
                assert both.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(children(both.pid)[1], signal.SIGKILL)
            assert both.wait(timeout=120) != 0
        finally:
            both.kill()
    text = (tmp_path / "said").read_text()
    assert "another process of this training is gone" in text
    done = train(tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    assert "resumes after" in done.stderr
    assert [row["epoch"] for row in numbers(tmp_path / "two")] == [1, 2, 3, 4, 5, 6]
