"""A picture reaches a network in one way, whatever form it is saved in and whatever command opens it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

import cbam
from cbam.cli.evaluate import EvaluateConfig, run, split_of
from cbam.cli.main import main
from cbam.data import load_data
from cbam.data.inputs import input_form
from cbam.export.images import calibration_images, validation_data
from cbam.models import build_model
from cbam.predict import load_run
from cbam.pretrained import open_network
from tests.data.pictures_on_disk import photo_folder
from tests.legacy import tiny  # makes timm/legacy_tiny known

assert tiny
NAME = "timm/legacy_tiny"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos") / "photos", 3)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run of this version, of one epoch, with a resize of its own."""
    folder = tmp_path_factory.mktemp("run") / "run"
    images = ["--data", str(photos), "--image-size", "16", "--resize", "20", "--mean", "0.4,0.5,0.6"]
    recipe = [
        "--model",
        NAME,
        "--reduction-ratio",
        "4",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    assert main(["train", *images, *recipe, "--output", str(folder)]) == 0
    return folder


def network(channels=3):
    torch.manual_seed(0)
    model = build_model(NAME, 3, in_channels=channels)
    cbam.attach(model, reduction_ratio=4, input_size=(channels, 24, 24))
    return model


def saved(folder, channels=3, **said):
    about = {"class_names": ["cat", "cup", "rocket"], "input_size": (channels, 24, 24)}
    statistics = {"mean": MEAN[:channels], "std": STD[:channels]}
    return cbam.save_pretrained(network(channels), folder, NAME, **about, **statistics, **said)


def before(folder):
    """config.json as the first versions wrote it."""
    file = folder / "config.json"
    said = json.loads(file.read_text())
    kept = {
        name: value
        for name, value in said.items()
        if name not in ("resize", "interpolation", "task", "versions")
    }
    file.write_text(json.dumps({**kept, "format": 1}))
    return folder


def run_of_before(trained, folder):
    """A run's checkpoint from before there was a config.json beside each, and options for the images."""
    shutil.copytree(trained, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("augment", "crop", "flip", "resize"):
        settings.pop(name)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    said = json.loads((folder / "data.json").read_text())
    del said["resize"]
    (folder / "data.json").write_text(json.dumps(said))
    (step, *_) = sorted((folder / "checkpoints").iterdir())
    (step / "config.json").unlink()
    return step


def forms(trained, tmp_path):
    """Each saved form with what it is: (source, options, (size, resize, interpolation, mean))."""
    step = sorted((trained / "checkpoints").iterdir())[-1]
    weights = tmp_path / "bare.pth"
    torch.save(build_model("resnet20", 3).state_dict(), weights)
    usual = (0.485, 0.456, 0.406)
    return {
        "saved": (saved(tmp_path / "a", resize=29, interpolation="bicubic"), None, (24, 29, "bicubic", MEAN)),
        "saved before": (before(saved(tmp_path / "b")), None, (24, 27, "bilinear", MEAN)),
        "grey": (saved(tmp_path / "c", 1, resize=25), None, (24, 25, "bilinear", MEAN[:1])),
        "run": (trained, None, (16, 20, "bilinear", MEAN)),
        "checkpoint": (step, None, (16, 20, "bilinear", MEAN)),
        "checkpoint before": (run_of_before(trained, tmp_path / "old"), None, (16, 18, "bilinear", MEAN)),
        "file": (weights, "resnet20", (32, 32, "bilinear", usual)),
    }


FORMS = ("saved", "saved before", "grey", "run", "checkpoint", "checkpoint before", "file")


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("form", FORMS)
def test_every_command_prepares_a_picture_in_the_same_way(trained, photos, tmp_path, form, size):
    source, model, (usual_size, resize, interpolation, mean) = forms(trained, tmp_path)[form]
    picture = sorted(photos.glob("*/*.jpg"))[0]
    opened = open_network(source, model, image_size=size)
    found = opened.preprocessing
    factor = 1 if size is None else size / usual_size
    assert (found.size, found.resize) == (size or usual_size, round(factor * resize))
    assert (found.interpolation, found.mean) == (interpolation, mean)

    seen = {"evaluate": evaluated(source, model, photos, size, picture)}
    seen["explain"] = input_form(open_network(source, model).model, size)[0]
    seen["explain"] = seen["explain"].batch(
        [seen["explain"].crop(cbam.data.inputs.open_picture(picture, ""))]
    )[0]
    pixels = (found.channels, found.size, found.size)
    network = open_network(source, model).model
    seen["calibration"] = calibration_images(network, str(photos), pixels, 9)[0]
    data = validation_data(network, None, str(photos), pixels, None)
    seen["export"] = item(data, picture) if picture.name in names(data) else None
    if size is None:
        predictor = load_run(source, model) if model else load_run(source)
        seen["predict"] = predictor.prepare(picture)
    first = seen.pop("evaluate")
    assert first.shape == pixels
    for command, tensor in seen.items():
        assert tensor is None or torch.equal(tensor, first), command


def evaluated(source, model, photos, size, picture):
    """Return what `cbam evaluate` gives the network."""
    config = EvaluateConfig(
        source=str(source),
        data=str(photos),
        split="all",
        model=model,
        image_size=size,
        device="cpu",
        batch_size=9,
    )
    return item(run(config, split_of(config)).data, picture)


def names(data):
    return [data.val.identifier(index).rpartition("/")[2] for index in range(len(data.val))]


def item(data, picture):
    found = [data.val.identifier(index) for index in range(len(data.val))]
    return data.val[0, found.index(f"{picture.parent.name}/{picture.name}")][0]


def test_a_run_validates_as_it_is_used(trained, photos):
    """Grad-CAM and the mistakes of a comparison are drawn of these items."""
    data = load_data(photos, image_size=16, resize=20, mean=MEAN)
    picture = sorted(photos.glob("*/*.jpg"))
    inside = next(
        path
        for path in picture
        if f"{path.parent.name}/{path.name}" in {data.val.identifier(index) for index in range(len(data.val))}
    )
    assert torch.equal(item(data, inside), load_run(trained).prepare(inside))


def test_a_built_in_set_keeps_its_own_statistics_only_where_the_network_says_none(tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet20", 10, in_channels=1)
    for folder, said in (("none", {}), ("own", {"mean": (0.1,), "std": (0.9,)})):
        cbam.save_pretrained(model, tmp_path / folder, "resnet20", input_size=(1, 8, 8), **said)
    of = {}
    for folder in ("none", "own"):
        config = EvaluateConfig(source=str(tmp_path / folder), data="digits", limit_val=20, device="cpu")
        of[folder] = run(config, split_of(config)).data.mean
    assert of == {"none": load_data("digits").mean, "own": (0.1,)}


def test_a_network_of_three_channels_is_no_network_for_grey_sets(trained, capsys):
    assert main(["evaluate", str(trained), "--data", "digits", "--device", "cpu"]) == 2
    assert "takes images of 3 channels, and those of digits are grey" in capsys.readouterr().err
