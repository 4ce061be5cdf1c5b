from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cbam.errors import CBAMError
from cbam.explain import class_activation_maps, gradcam_pictures
from cbam.explain.overlay import overlay

CLASSES = ("zero", "one/../..", "<b>two</b>")


class Pictures:
    """Nine grey images of three classes; class 1 comes first, to tell file order from class order."""

    def __init__(self):
        self.labels = [1, 1, 0, 2, 0, 2, 1, 0, 2]
        self.pixels = torch.rand(9, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, address):
        epoch, index = address
        assert epoch == 0
        return (self.pixels[index] - 0.5) / 0.25, self.labels[index]

    def picture(self, index):
        return Image.fromarray((255 * self.pixels[index, 0]).byte().numpy())


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 49, 3)
    )


@pytest.fixture
def models():
    return {"none": network(0), "cbam:official": network(1)}


def manifest(folder):
    return json.loads((folder / "pictures.json").read_text())


def test_chooses_by_rule_and_writes_what_the_manifest_says(models, tmp_path):
    folder = tmp_path / "run" / "pictures"
    gradcam_pictures(models, "1", Pictures(), CLASSES, folder, seed=4)
    found = manifest(folder)
    assert [(image["index"], image["label"], image["class"]) for image in found["images"]] == [
        (2, 0, "zero"),
        (0, 1, "one/../.."),
        (3, 2, "<b>two</b>"),
    ]
    assert (found["layer"], found["map_size"], found["seed"], found["notes"]) == ("1", [7, 7], 4, {})
    assert "first validation image of each of the first 3 classes" in found["rule"]
    named = {image["original"] for image in found["images"]}
    named |= {shown["overlay"] for image in found["images"] for shown in image["variants"].values()}
    assert {file.name for file in folder.iterdir()} == named | {"pictures.json"}


def test_shows_the_maps_of_each_model(models, tmp_path):
    data = Pictures()
    gradcam_pictures(models, "1", data, CLASSES, tmp_path / "p")
    second = manifest(tmp_path / "p")["images"][1]
    expected = class_activation_maps(models["cbam:official"], "1", data[0, 0][0][None], [1])
    shown = second["variants"]["cbam:official"]
    assert shown["probability"] == pytest.approx(expected.probabilities[0])
    assert shown["predicted"] == CLASSES[expected.predicted[0]]
    drawn = Image.open(tmp_path / "p" / shown["overlay"])
    assert np.array_equal(np.asarray(drawn), np.asarray(overlay(data.picture(0), expected.heat[0].numpy())))
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "p" / second["original"])), np.asarray(data.picture(0))
    )


def test_count_limits_the_classes(models, tmp_path):
    gradcam_pictures(models, "1", Pictures(), CLASSES, tmp_path / "p", count=2)
    assert len(manifest(tmp_path / "p")["images"]) == 2


def test_replaces_an_older_folder_as_a_whole(models, tmp_path):
    gradcam_pictures(models, "1", Pictures(), CLASSES, tmp_path / "p")
    (tmp_path / "p" / "stale.png").touch()
    gradcam_pictures({"none": models["none"]}, "1", Pictures(), CLASSES, tmp_path / "p", count=1)
    assert len(list((tmp_path / "p").iterdir())) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_failure_leaves_the_older_folder(models, tmp_path, monkeypatch):
    gradcam_pictures(models, "1", Pictures(), CLASSES, tmp_path / "p")
    before = manifest(tmp_path / "p")
    monkeypatch.setattr(Pictures, "picture", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gradcam_pictures(models, "1", Pictures(), CLASSES, tmp_path / "p")
    assert manifest(tmp_path / "p") == before
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_broken_model_gets_a_note_and_the_others_their_pictures(models, tmp_path):
    with torch.no_grad():
        models["none"][3].bias[0] = float("nan")
    gradcam_pictures(models, "1", Pictures(), CLASSES, tmp_path / "p")
    found = manifest(tmp_path / "p")
    assert "the scores: values that are not finite" in found["notes"]["none"]
    assert all(list(image["variants"]) == ["cbam:official"] for image in found["images"])


def test_refuses_an_unknown_layer_before_any_work(models, tmp_path):
    with pytest.raises(CBAMError, match="unknown layer 'layer3'"):
        gradcam_pictures(models, "layer3", Pictures(), CLASSES, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_refuses_to_draw_nothing(models, tmp_path):
    with pytest.raises(CBAMError, match="nothing to draw: 3 images and 0 models"):
        gradcam_pictures({}, "1", Pictures(), CLASSES, tmp_path / "p")
