"""`cbam train` as real processes: killed, told to stop, several at once; all end like one straight run."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cbam.cli.main import main
from cbam.cli.train import parse, show
from cbam.pretrained import from_pretrained

TASK = [
    *("--data", "digits", "--limit-train", "192", "--limit-val", "60", "--image-size", "32"),
    *("--model", "timm/test_convnext", "--preset", "paper", "--batch-size", "32", "--epochs", "3"),
    *("--ema", "0.9", "--mixup", "0.2", "--device", "cpu", "--save-every", "2"),
]
# The n-th time that something of a name is forced to the disk, the process is killed: in the middle of a save.
KILLED_WHILE_SAVING = """
import fnmatch, os, signal
sync, name, left = os.fsync, {name!r}, [{time}]
def fsync(descriptor):
    left[0] -= fnmatch.fnmatch(os.readlink(f"/proc/self/fd/{{descriptor}}"), name)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = fsync
"""
TIMES = ("seconds", "images_per_s", "data_wait_s")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def run(folder, *options, before=("-m", "cbam")):
    arguments = [sys.executable, *before, "train", *TASK, "--output", str(folder), *options]
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=500)


@pytest.fixture
def train(server):
    """Run a training whose parent has imported torch already."""
    return lambda folder, *options, **how: server.run("train", *TASK, "--output", folder, *options, **how)


def start(server, folder, *options):
    """Start a training and return it once it has saved something."""
    process = server.start("train", *TASK, "--output", folder, *options)
    until = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def numbers(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def same(ours, theirs):
    for network in ("final", "final_ema", "best"):
        a, b = (load_file(folder / network / "model.safetensors") for folder in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), network
    assert numbers(ours) == numbers(theirs)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_one_straight_run(straight):
    rows = numbers(straight)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {row["images"] for row in rows} == {60}
    result = json.loads((straight / "result.json").read_text())
    assert result["val_accuracy"] == rows[-1]["val_accuracy"]
    assert (straight / "metrics.csv").read_text().count("\n") == 4
    model = from_pretrained(straight / "final")
    assert model.cbam_config.class_names == tuple("0123456789")
    assert [path.name for path in sorted((straight / "checkpoints").iterdir())] == [
        "step-000000016",
        "step-000000018",
    ]


@pytest.mark.slow
def test_finished_it_only_says_so(straight, capsys):
    before = (straight / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", *TASK, "--output", str(straight)]) == 0
    assert "top-1" in capsys.readouterr().out
    assert (straight / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bits(straight, server, train, tmp_path):
    process = start(server, tmp_path / "run")
    process.kill()
    process.communicate()
    done = train(tmp_path / "run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "resumes after" in done.stderr
    same(straight, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "time"),
    [
        ("*/checkpoints/.step-*/model.safetensors", 1),
        ("*/checkpoints/.step-*/ema.safetensors", 2),
        ("*/checkpoints/.step-*/training.pt", 3),
        ("*/checkpoints/.step-*/manifest.json", 4),
        ("*/checkpoints/.step-*.tmp", 5),
        ("*/checkpoints", 6),
        ("*/metrics.jsonl", 2),
        ("*/best/.model.safetensors.*", 1),
        ("*/best/.config.json.*", 2),
        ("*/final/.model.safetensors.*", 1),
        ("*/.result.json.*", 1),
    ],
)
def test_killed_while_saving(straight, train, tmp_path, file, time):
    killed = train(tmp_path / "run", first=KILLED_WHILE_SAVING.format(name=file, time=time))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    same(straight, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 75), (signal.SIGUSR1, "SIGUSR1", 75)],
)
def test_told_to_stop_it_saves_and_says_so(straight, server, train, tmp_path, number, name, code):
    process = start(server, tmp_path / "run", "--save-every", "1000", "--epochs", "3")
    steps = len(list((tmp_path / "run" / "checkpoints").iterdir()))
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert f"stopped by {name} after" in said
    assert f"; everything is saved in {tmp_path / 'run'}." in said
    assert "type the same again:\n  cbam train --data digits" in said
    assert "Traceback" not in said
    assert steps
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    same(straight, tmp_path / "run")


def processes(folder, *options):
    """Train with two processes, as documented: without a --device, where that means the CPU."""
    return run(
        folder,
        *options,
        *("--device", "cpu" if torch.accelerator.is_available() else "auto"),
        before=("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "cbam"),
    )


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_and_one_process_speaks(tmp_path):
    """torchrun hands the signal on to its processes; what it says itself is not ours."""
    folder = tmp_path / "run"
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "cbam")
    arguments = [
        sys.executable,
        *launch,
        "train",
        *TASK,
        "--mixup",
        "0",
        "--epochs",
        "50",
        "--output",
        str(folder),
    ]
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert said.count("stopped by Ctrl-C after") == 1, said
    assert "torchrun --nproc-per-node=2 -m cbam train" in said
    assert "KeyboardInterrupt" not in said
    assert "cbam/train/loop.py" not in said


def close(ours, theirs):
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (ours, theirs))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(train, tmp_path):
    """Each mixes images within its share, so without mixup; the state of two is taken up by one."""
    done = train(tmp_path / "one", "--mixup", "0", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    both = processes(tmp_path / "two", "--mixup", "0", "--epochs", "2", "--accumulate", "2")
    assert both.returncode == 0, both.stderr
    close(tmp_path / "one", tmp_path / "two")
    ours, theirs = (numbers(tmp_path / name) for name in ("one", "two"))
    assert [row["images"] for row in theirs] == [60, 60], "no image is counted twice"
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
    # Go on with one process where two had stopped: as if the second epoch had not been.
    (tmp_path / "two" / "result.json").unlink()
    newest = sorted((tmp_path / "two" / "checkpoints").iterdir())[-1]
    (newest / "training.pt").write_bytes(b"")
    done = train(tmp_path / "two", "--mixup", "0", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "training.pt has 0 bytes" in done.stderr
    close(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_network_divided_over_two_processes(train, tmp_path):
    options = ("--mixup", "0", "--ema", "0", "--epochs", "1")
    assert train(tmp_path / "one", *options).returncode == 0
    divided = processes(tmp_path / "two", *options, "--shard")
    assert divided.returncode == 0, divided.stderr
    close(tmp_path / "one", tmp_path / "two")


def test_a_folder_that_is_deleted_under_the_training_is_no_success(server, tmp_path):
    """What is left would have neither settings nor the metrics so far."""
    folder = tmp_path / "run"
    process = start(server, folder, "--epochs", "30", "--ema", "0")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # a checkpoint may have been written meanwhile
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert f"{folder} was deleted, moved or emptied while this run was writing" in said
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["--shard", "--ema", "0.9"], "--shard works with neither"),
        (["--model", "resnet20", "--attention", "cbam", "--sites", "layer9"], "layer9"),
        (["--batch-size", "30", "--accumulate", "4"], "divide --batch-size 30"),
        (["--data", "digit"], "digits"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(tmp_path, capsys, options, message):
    base = ["--data", "digits", "--model", "resnet20", "--output", str(tmp_path / "run"), "--device", "cpu"]
    try:
        code = main(["train", *base, *options])
    except SystemExit as exit_:  # what the options' parser refuses itself
        code = exit_.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_other_settings_in_the_same_folder_are_refused(straight, capsys):
    assert main(["train", *TASK, "--output", str(straight), "--epochs", "9"]) == 2
    assert "epochs: 3 there, 9 now" in capsys.readouterr().err


@pytest.mark.parametrize(("classes", "printed"), [(5, False), (6, True)])
def test_top_5_of_five_classes_is_not_printed(tmp_path, classes, printed):
    result = {
        "val_accuracy": 0.5, "val_top5": 0.9, "val_accuracy_ema": 0.5, "val_top5_ema": 0.9, "images": 60, "epochs": 2,
        "best_val_accuracy": 0.5, "best_epoch": 2, "per_class_accuracy": [0.5] * classes,
    }  # fmt: skip
    text = io.StringIO()
    show(result, parse(["--data", "digits", "--epochs", "2", "--output", str(tmp_path)]), Console(file=text))
    assert ("top-5" in text.getvalue()) is printed
    assert "top-1 50.00%" in text.getvalue()
