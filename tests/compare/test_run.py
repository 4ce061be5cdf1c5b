"""What `prepare` and the job decide, in the process itself; whole runs are in tests/cli/test_compare.py."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from cbam.cli.main import main
from cbam.compare.config import CompareConfig
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.job import absorb_metrics
from cbam.compare.run import prepare
from cbam.errors import CBAMError
from cbam.evaluate.predictions import FILE, Predictions
from cbam.models import build_model
from cbam.runs.progress import Progress
from cbam.runs.rows import Rows
from cbam.train.config import TrainConfig


@pytest.fixture
def text():
    return io.StringIO()


def config(folder, **settings):
    train = TrainConfig(epochs=1, batch_size=50, device="cpu", ema=0.9)
    settings = {"attention": "none", "seeds": 1, **settings}
    return CompareConfig(data="digits", limit_train=100, limit_val=30, output=folder, train=train, **settings)


def ready(text, settings):
    return prepare(settings, ["cbam", "compare"], Progress(Console(file=text, width=200)))


def test_prepare_writes_nothing_and_counts_the_models(tmp_path, text):
    job = ready(text, config(tmp_path / "run", attention="none,cbam,control"))
    assert not (tmp_path / "run").exists()
    assert job.parameters["none"] < job.parameters["cbam"]
    assert "100 images to train on, 30 to validate, 10 classes, 1x8x8 each" in text.getvalue()


def test_a_run_keeps_its_seeds(tmp_path, text):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config(folder, seeds=4).resolved()))
    job = ready(text, config(folder, seeds=2))
    assert job.config.seeds == job.settings()["seeds"] == 4
    assert "resumes with all of them" in text.getvalue()
    job = ready(text, config(folder, seeds=6))
    assert job.config.seeds == 6


def test_other_images_under_the_same_name_are_refused(tmp_path, text):
    """What `--data` finds can change between two calls: a file was added, or another set stood in."""
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(images / name / f"{i}.png")
    train = TrainConfig(epochs=1, batch_size=4, device="cpu")
    folder = tmp_path / "run"
    settings = CompareConfig(
        data=str(images), image_size=32, attention="none", seeds=1, output=folder, train=train
    )
    ready(text, settings).execute()
    ready(text, settings).execute()  # the same images: the run is known to be done
    (images / "cat" / "0.png").rename(images / "cat" / "renamed.png")
    with pytest.raises(
        CBAMError, match=r"holds a run on other images \(labels_sha256: .*give another --output"
    ):
        ready(text, settings)


def test_a_place_without_attention_is_found_out_before_training(tmp_path, text):
    settings = {
        "model": "torchvision/vgg11",
        "attention": "none,cbam",
        "image_size": 32,
        "sites": ("residual",),
    }
    with pytest.raises(CBAMError, match="'residual' finds no site in VGG"):
        ready(text, config(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_a_network_without_a_feature_map_has_no_pictures_but_a_report(tmp_path, text, monkeypatch):
    def no_map(model, input_size):
        raise CBAMError("no module puts out a map")

    monkeypatch.setattr("cbam.compare.measure.cam_layer", no_map)
    outcome = ready(text, config(tmp_path / "run")).execute()
    assert outcome.report.exists()
    assert "no pictures: no module puts out a map" in text.getvalue()


def test_what_was_said_of_each_image_is_kept_and_the_hardest_are_drawn(tmp_path, text):
    folder = tmp_path / "run"
    ready(text, config(folder)).execute()
    cell = folder / "cells" / "none-seed0"
    said, result = Predictions.read(cell / FILE), json.loads((cell / "result.json").read_text())
    assert said.confusion(10).tolist() == result["confusion"]
    assert len(said) == 30
    hardest = json.loads((folder / "mistakes" / "mistakes.json").read_text())["images"]
    assert 0 < len(hardest) <= 8
    assert not any(said.correct[image["index"]] for image in hardest)
    assert "Most confused images" in (folder / "report.html").read_text()


def test_the_moving_average_is_reported_and_kept(tmp_path, text):
    ready(text, config(tmp_path / "run")).execute()
    cell = tmp_path / "run" / "cells" / "none-seed0"
    result = json.loads((cell / "result.json").read_text())
    assert 0 <= result["val_accuracy_ema"] <= 1
    assert (cell / "model_ema.safetensors").exists()


def test_weights_that_are_not_finite_end_with_code_1_and_the_module(tmp_path, capsys):
    model = build_model("resnet20", 10, in_channels=1)
    model.layer3[1].conv1.weight.data[0, 0, 0, 0] = math.inf
    torch.save(model.state_dict(), tmp_path / "broken.pth")
    options = [
        "--data",
        "digits",
        "--attention",
        "none",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["compare", *options, "--weights", str(tmp_path / "broken.pth")]) == 1
    err = capsys.readouterr().err
    assert "'layer3.1.conv1' (Conv2d); its own weight is not finite" in err
    assert "cell none-seed0" in err
    assert err.count("broken.pth: ") == 1, "what was loaded is told once"


def row(cell, epoch):
    return {"cell": cell, "epoch": epoch}


def test_rows_of_finished_cells_join_the_run_s(tmp_path, monkeypatch):
    folder = CompareFolder(tmp_path)
    done, open_ = Cell("cbam", 0), Cell("cbam", 1)
    for cell in (done, open_):
        own = Rows(folder.cell(cell) / "metrics.jsonl")
        own.append(row(cell.name, 1))
        own.append(row(cell.name, 2))
    folder.metrics.append(row("none-seed0", 1))
    folder.metrics.append(row(done.name, 1))  # of an attempt before
    monkeypatch.setattr(CompareFolder, "result", lambda self, cell: {} if cell == done else None)
    absorb_metrics(folder, [done, open_])
    assert folder.metrics.read() == [row("none-seed0", 1), row(done.name, 1), row(done.name, 2)]
    assert not (folder.cell(done) / "metrics.jsonl").exists()
    assert (folder.cell(open_) / "metrics.jsonl").exists()
