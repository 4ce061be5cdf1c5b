from __future__ import annotations

import json

import pytest
import torch

import cbam
from cbam.cli.main import main
from cbam.data import load_data
from cbam.models import build_model


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


def saved(folder, data, names=None):
    """A network with random weights, and what it answers on the validation images."""
    torch.manual_seed(0)
    model = build_model("resnet20", 10, in_channels=1).eval()
    cbam.attach(model, init="paper", input_size=data.input_size)
    images, labels = zip(*(data.val[0, index] for index in range(len(data.val))), strict=True)
    with torch.no_grad():
        logits = model(torch.stack(images))
    cbam.save_pretrained(
        model,
        folder,
        "resnet20",
        class_names=names or data.classes,
        input_size=data.input_size,
        mean=data.mean,
        std=data.std,
    )
    return logits, torch.tensor(labels)


@pytest.mark.parametrize("batch_size", ["50", "359"])
def test_every_image_counts_once(tmp_path, data, capsys, batch_size):
    logits, labels = saved(tmp_path / "best", data)
    file = tmp_path / "scores.json"
    options = ["--data", "digits", "--batch-size", batch_size, "--device", "cpu", "--output", str(file)]
    assert main(["evaluate", str(tmp_path), *options]) == 0  # a run's folder: its best network
    scores = json.loads(file.read_text())
    assert scores["images"] == len(labels) == 359
    assert scores["top1"] == (logits.argmax(1) == labels).sum().item() / 359
    assert scores["top5"] == (logits.topk(5).indices == labels[:, None]).any(1).sum().item() / 359
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert scores["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    said = capsys.readouterr().out
    assert f"top-1 {scores['top1']:.2%}" in said
    assert "359 images" in said


def test_images_of_other_classes_are_refused(tmp_path, data, capsys):
    saved(tmp_path, data, names=[*"01234567", "eight", "9"])
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]) == 2
    assert "'eight' there and '8' here" in capsys.readouterr().err


def test_a_folder_without_a_network(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_run_is_scored_on_the_images_that_it_left_out(tmp_path, data, capsys):
    """With another share, images that it was trained on would count, and nobody would see it."""
    saved(tmp_path / "best", data)
    (tmp_path / "config.yaml").write_text("data: digits\nval_fraction: 0.1\nlimit_val: null\n")
    left_out = len(load_data("digits", val_fraction=0.1).val)
    command = ["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"on {left_out} images" in said
    assert "--val-fraction" not in said
    assert main(["evaluate", str(tmp_path / "best"), *command[2:]]) == 0
    assert f"on {left_out} images" in capsys.readouterr().out
    assert main([*command, "--val-fraction", "0.2", "--limit-val", "20"]) == 0
    said = capsys.readouterr().out
    assert "trained with --val-fraction 0.1" in said
    assert "validated on all of them" in said
    assert "on 20 images" in said


@pytest.mark.parametrize(
    "content",
    ["data: /somewhere/else\nval_fraction: 0.1\n", "data: [\n", "data: digits\nval_fraction: x\n", "7"],
)
def test_the_split_of_other_images_and_a_damaged_one_do_not_count(tmp_path, data, capsys, content):
    saved(tmp_path / "best", data)
    (tmp_path / "config.yaml").write_text(content)
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]) == 0
    assert "on 359 images" in capsys.readouterr().out


def test_a_comparison_is_named(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]) == 2
    assert "is a run of cbam compare or cbam ablate" in capsys.readouterr().err
