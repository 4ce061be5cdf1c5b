"""`cbam export` from the command line."""

import pytest
import torch

import cbam
from cbam.cli.main import main
from cbam.export import load
from cbam.models import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("resnet20", 10, in_channels=1)
    cbam.attach(model, input_size=(1, 8, 8), init="paper")
    there = tmp_path_factory.mktemp("saved")
    return cbam.save_pretrained(
        model,
        there,
        "resnet20",
        class_names=list("0123456789"),
        input_size=(1, 8, 8),
        mean=(0.3053,),
        std=(0.3759,),
    )


def test_a_file_its_differences_times_and_accuracy(folder, tmp_path, capsys):
    path = tmp_path / "digits.pt2"
    words = ["export", str(folder), "--output", str(path), "--dynamic", "batch", "--data", "digits"]
    assert main([*words, "--limit-val", "20"]) == 0
    out = capsys.readouterr().out
    assert "torch.export, fp32, " in out
    assert "1 x 1 x 8 x 8" in out
    assert "3 x 1 x 8 x 8" in out
    assert "eager" in out
    assert "(+0.00%) on 20 images; the same class for 100.00%" in out
    loaded = load(path)
    model = cbam.from_pretrained(folder)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(loaded(images)[0], model(images).detach(), rtol=1e-4, atol=1e-5)
    assert loaded.metadata["class_names"] == list("0123456789")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "net.onnx", "--precision", "int8"), "needs --calibrate FOLDER"),
        (("--output", "net.onnx", "--calibrate", "x"), "--calibrate is for --precision int8"),
        (("--output", "net.xml"), "ends in .onnx or .pt2"),
        (("--output", "net.pt2", "--batch-size", "0"), "must be at least 1"),
        (("--output", "net.pt2", "--dynamic", "batches"), "Did you mean 'batch'"),
        (("--output", "net.pt2", "--image-size", "8x8"), "--image-size 8x8 is for detectors"),
        (
            ("--output", "net.pt2", "--image-size", "8x"),
            "is one side such as 224, of a detector also 480x640",
        ),
    ],
)
def test_mistakes(folder, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    from cbam.checkpoints.switches import switches_of
    from cbam.detect.saved import SavedDetector, save_detector
    from cbam.models.detection import build_detector

    arguments = {"name": "ssd300_mobilenet", "classes": 2, "attention": "cbam", "width": 0.125}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "best"
    about = SavedDetector(arguments, ("cat", "dog"), (1, 2), "coco", "coco:gone")
    model = build_detector(**arguments)
    save_detector(folder, model.state_dict(), about, switches_of(model))
    return folder.parent


def test_a_detector(detector, tmp_path, capsys):
    path = tmp_path / "net.pt2"
    assert main(["export", str(detector), "--output", str(path), "--image-size", "40x60"]) == 0
    out = capsys.readouterr().out
    assert "1 x 3 x 40 x 60" in out
    assert "compared on noise, as the run's images are not here" in out
    assert load(path).metadata["class_names"] == ["__background__", "cat", "dog"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dynamic", "batch"), "takes one image of one size"),
        (("--batch-size", "2"), "takes one image, and --batch-size 2"),
        (("--data", "coco:absent"), "absent"),
    ],
)
def test_mistakes_with_a_detector(detector, words, message, capsys, tmp_path):
    assert main(["export", str(detector), "--output", str(tmp_path / "net.pt2"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
