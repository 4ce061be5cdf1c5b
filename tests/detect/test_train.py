"""`cbam detect train` as real processes: killed, told to stop, several at once; all end like one straight run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cbam.cli.main import main
from cbam.detect.saved import open_detector
from tests.data.detection.layouts import coco_file, coco_image, coco_object
from tests.data.pictures_on_disk import save_cuts

# Three steps an epoch; norms with statistics, so that buffers count too; the smallest detector that has them.
TASK = [
    *("--model", "fasterrcnn_mobilenet_v1_fpn", "--width", "0.25", "--image-size", "64", "--batch-size", "6"),
    *("--epochs", "2", "--device", "cpu", "--ema", "0.9", "--save-every", "1", "--lr", "0.01"),
    *("--augment", "multiscale", "--clip-gradients", "10"),
    "--detector-options",
    "rpn_post_nms_top_n_train=20,rpn_post_nms_top_n_test=20,box_batch_size_per_image=8,box_detections_per_img=10",
]
TIMES = ("seconds", "images_per_s", "data_wait_s")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def command(garments, folder, *options, before=("-m", "cbam")):
    words = [sys.executable, *before, "detect", "train", "--data", garments["coco"], *TASK]
    return [*words, "--output", str(folder), *options]


def numbers(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def same(ours, theirs):
    for network in ("final", "final_ema", "best"):
        a, b = (load_file(folder / network / "model.safetensors") for folder in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), network
    assert numbers(ours) == numbers(theirs)
    ours, theirs = (json.loads((folder / "evaluation.json").read_text()) for folder in (ours, theirs))
    assert ours == theirs


@pytest.fixture(scope="module")
def straight(garments, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = server.run("detect", "train", "--data", garments["coco"], *TASK, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_one_straight_run(straight):
    rows = numbers(straight)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {row["images"] for row in rows} == {8}
    result = json.loads((straight / "result.json").read_text())
    assert result["val_map"] == rows[-1]["val_map"]
    assert set(result["per_class"]) == {"Trouser", "Sneaker", "Bag"}
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert len(evaluation["boxes"]["figures"]) == 12
    model, about = open_detector(straight)
    assert about.classes == ("Trouser", "Sneaker", "Bag")
    assert sorted(model([torch.rand(3, 48, 64)])[0]) == ["boxes", "labels", "scores"]


def test_finished_it_only_says_so(straight, garments, capsys):
    before = (straight / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(["detect", "train", "--data", garments["coco"], *TASK, "--output", str(straight)]) == 0
    assert "AP50" in capsys.readouterr().out
    assert (straight / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", range(20))
def test_killed_anywhere_it_ends_with_the_same_bits(straight, garments, server, tmp_path, number):
    """The process is killed at a random time between its start and its end, twice; then it may finish."""
    draw = random.Random(number)
    folder = tmp_path / "run"
    took = json.loads((straight / "result.json").read_text())["seconds"] + 2
    for _ in range(2):
        process = server.start("detect", "train", "--data", garments["coco"], *TASK, "--output", folder)
        time.sleep(took * draw.random())
        process.kill()
        process.communicate()
    workers = ("--workers", str(number % 2))
    done = server.run("detect", "train", "--data", garments["coco"], *TASK, "--output", folder, *workers)
    assert done.returncode == 0, done.stderr
    same(straight, folder)


def test_told_to_stop_it_saves_and_says_so(straight, garments, server, tmp_path):
    folder = tmp_path / "run"
    process = server.start("detect", "train", "--data", garments["coco"], *TASK, "--output", folder)
    until = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert "To resume, type the same again" in err
    assert (
        server.run("detect", "train", "--data", garments["coco"], *TASK, "--output", folder).returncode == 0
    )
    same(straight, folder)


@pytest.fixture
def one_size(tmp_path):
    """Images of one size: of others, each process would pad its share of a batch to the largest in there."""
    root = tmp_path / "coco"
    for side, count in (("train", 8), ("val", 4)):
        save_cuts(root / f"{side}2017", "cat", count)
        images = [coco_image(n, f"{n:03d}.jpg", (60, 48)) for n in range(count)]
        objects = [
            coco_object(n, n, (1, 18)[n % 2], bbox=[5 + n, 6 + n % 5, 30, 20 + n]) for n in range(count)
        ]
        coco_file(root / "annotations" / f"instances_{side}2017.json", images, objects)
    return f"coco:{root}"


def test_two_processes_train_as_one(one_size, tmp_path):
    """Norms are frozen, and RetinaNet's loss is a mean over images without samples: nothing depends on the division."""
    task = [
        *("detect", "train", "--data", one_size, "--model", "retinanet_resnet18_fpn", "--norm", "frozen"),
        *("--attention", "cbam:official", "--image-size", "32", "--batch-size", "4", "--epochs", "2"),
        *("--lr", "0.01", "--warmup-steps", "0"),
    ]
    device = "cpu" if torch.accelerator.is_available() else "auto"  # torchrun as documented has no --device
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder, before in zip(folders, (torchrun, ()), strict=True):
        words = [sys.executable, *before, "-m", "cbam", *task, "--output", str(folder), "--device", device]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    for two, one in zip(*map(numbers, folders), strict=True):
        assert two["images"] == one["images"] == 4
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    two, one = (load_file(folder / "final" / "model.safetensors") for folder in folders)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
