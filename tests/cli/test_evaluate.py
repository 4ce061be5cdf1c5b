from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import cbam
from cbam.cli.main import main
from cbam.data import load_data
from cbam.models import build_model
from tests.page.parsed import Page


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
    said = capsys.readouterr().err
    assert "trained on 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, eight, 9" in said
    assert "digits has 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in said
    assert "does not know: 8." in said


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
    (tmp_path / "cells" / "cbam-seed0").mkdir(parents=True)
    (tmp_path / "cells" / "cbam-seed0" / "model.safetensors").touch()
    assert main(["evaluate", str(tmp_path), "--data", "digits", "--device", "cpu"]) == 2
    assert "Name one: --variant cbam" in capsys.readouterr().err


CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network for 16 x 16 pixels that tells red, green and blue apart, saved with its classes."""
    folder = tmp_path_factory.mktemp("colours") / "best"
    torch.manual_seed(0)
    model = build_model("resnet20", 3, in_channels=3).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("conv2.weight") or "fc" in name:
                weight.zero_()  # every block is the identity (its branch adds nothing), or projects the channels
        model.conv1.weight.zero_()
        for colour in range(3):
            model.conv1.weight[colour, colour, 1, 1] = 1
            model.fc.weight[colour, 24 + colour] = 9  # two shortcuts pad 8 and 16 channels before
    cbam.save_pretrained(
        model,
        folder,
        "resnet20",
        class_names=CLASSES,
        input_size=(3, 16, 16),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return folder


def class_folders(folder, counts, colours=None):
    """Pictures of one colour each, in the class's unless `colours` says another one."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.zeros((16, 16, 3), dtype=np.uint8)
            pixels[
                ..., (colours or {}).get((name, number), CLASSES.index(name) if name in CLASSES else 0)
            ] = 255
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


class TestAFolder:
    def test_is_scored_whole_unless_a_split_is_asked_for(self, tmp_path, network, capsys):
        images = class_folders(tmp_path / "photos", {"ant": 5, "bee": 6, "cat": 4})
        command = ["evaluate", str(network), "--data", images, "--device", "cpu"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "15 images: ant 5, bee 6, cat 4." in said
        assert "on 15 images" in said
        assert main([*command, "--split", "val", "--val-fraction", "0.4"]) == 0
        assert "6 images: ant 2, bee 2, cat 2." in capsys.readouterr().out
        assert main([*command, "--val-fraction", "0.2"]) == 0, "a share is asked for, so a split is"
        assert "3 images: ant 1, bee 1, cat 1." in capsys.readouterr().out

    def test_with_images_for_validation_is_scored_on_those(self, tmp_path, network, capsys):
        for side, count in (("train", 3), ("val", 2)):
            class_folders(tmp_path / "photos" / side, dict.fromkeys(CLASSES, count))
        assert main(["evaluate", str(network), "--data", str(tmp_path / "photos"), "--device", "cpu"]) == 0
        assert "6 images: ant 2, bee 2, cat 2." in capsys.readouterr().out

    def test_of_the_run_itself_is_split_as_the_run_split_it(self, tmp_path, network, capsys):
        images = class_folders(tmp_path / "photos", dict.fromkeys(CLASSES, 5))
        run = tmp_path / "run"
        run.mkdir()
        (run / "best").symlink_to(network)
        (run / "config.yaml").write_text(f"data: {images}\nval_fraction: 0.4\nlimit_val: null\n")
        command = ["evaluate", str(run), "--data", images, "--device", "cpu"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "6 images: ant 2, bee 2, cat 2." in said
        assert "note" not in said
        assert main([*command, "--split", "all"]) == 0
        said = capsys.readouterr().out
        assert "15 images" in said
        assert "trained on these images" in said

    @pytest.mark.parametrize("names", [("bee", "cat"), ("cat",)])
    def test_may_hold_fewer_classes(self, tmp_path, network, capsys, names):
        images = class_folders(tmp_path / "photos", dict.fromkeys(names, 3))
        output = tmp_path / "scores.json"
        assert (
            main(["evaluate", str(network), "--data", images, "--device", "cpu", "--output", str(output)])
            == 0
        )
        scores = json.loads(output.read_text())
        assert scores["top1"] == scores["balanced_accuracy"] == 1, "labels count in the network's order"
        assert [row["images"] for row in scores["classes"]] == [3 * (name in names) for name in CLASSES]
        assert f"of the network's 3 classes {len(names)} have images here" in capsys.readouterr().out

    def test_with_a_class_that_the_network_does_not_know(self, tmp_path, network, capsys):
        images = class_folders(tmp_path / "photos", {"ant": 2, "bees": 2})
        assert main(["evaluate", str(network), "--data", images, "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert "trained on 3 classes: ant, bee, cat" in said
        assert "photos has 2: ant, bees" in said
        assert "Did you mean 'bee' by 'bees'?" in said


def test_everything_is_written_and_agrees(tmp_path, network, capsys):
    """One picture of each of two classes has another's colour: every number follows by hand."""
    images = class_folders(tmp_path / "photos", dict.fromkeys(CLASSES, 4), {("ant", 0): 1, ("cat", 3): 1})
    output = tmp_path / "scores"
    assert main(["evaluate", str(network), "--data", images, "--device", "cpu", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    scores = json.loads((output / "scores.json").read_text())
    assert scores["top1"] == pytest.approx(10 / 12)
    assert "top5" not in scores
    assert "top-5" not in said
    assert scores["confusion"]["images"] == [[3, 1, 0], [0, 4, 0], [0, 1, 3]]
    assert scores["classes"][1] == {
        "class": "bee", "images": 4, "predicted": 6,
        "precision": pytest.approx(4 / 6), "recall": 1, "f1": pytest.approx(0.8),
    }  # fmt: skip
    assert [(pair["true"], pair["predicted"]) for pair in scores["most_confused_pairs"]] == [
        ("ant", "bee"),
        ("cat", "bee"),
    ]
    assert {mistake["image"] for mistake in scores["most_confused_images"]} == {"ant/0.png", "cat/3.png"}
    with (output / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["recall"]) for row in rows] == [0.75, 1, 0.75]
    with (output / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [row["image"] for row in rows if row["class"] != row["predicted"]] == ["ant/0.png", "cat/3.png"]
    for text in (
        "balanced accuracy 83.33%",
        "ant as bee: 1 (25.0 %)",
        "ant/0.png: ant as bee",
        "calibration error",
    ):
        assert text in said
    page = Page((output / "evaluation.html").read_text())
    assert "83.33 % of 12 images right" in page.words
    assert page.row("bee") == ["bee", "4", "6", "66.67", "100.00", "80.00"]
    assert (
        "Confusion matrix: 10 of 12 images are right. ant as bee: 1 (25.0 %)"
        in page.all("svg")[0]["aria-label"]
    )
    assert page.all("img")[0]["alt"] == "Image ant/0.png, class ant, predicted as bee"


@pytest.mark.parametrize("kind", ["csv", "html"])
def test_one_file_is_written_by_its_ending(tmp_path, network, kind):
    images = class_folders(tmp_path / "photos", dict.fromkeys(CLASSES, 1))
    output = tmp_path / f"out.{kind}"
    assert main(["evaluate", str(network), "--data", images, "--device", "cpu", "--output", str(output)]) == 0
    assert output.read_text().startswith({"csv": "class,images", "html": "<!doctype html>"}[kind])


def test_another_ending_is_refused_before_any_work(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "nowhere", "--data", "digits", "--output", "scores.xlsx"])
    said = " ".join(capsys.readouterr().err.split())
    assert "scores.xlsx is neither a folder nor a file that ends in .json, .csv, .html" in said
