"""Calibration images, and accuracy before and after."""

import pytest
import torch
from PIL import Image
from torch import nn

from cbam.data import load_data
from cbam.errors import CBAMError
from cbam.export.images import accuracy, calibration_images, validation_data
from cbam.pretrained.config import Config

SAVED = Config("full", "", None, (), input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def model():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    net.cbam_config = SAVED
    return net


def test_pictures_at_any_depth_are_prepared_as_the_network_wants(model, tmp_path):
    for index, shade in enumerate((0, 255, 128)):
        there = tmp_path / str(index)
        there.mkdir()
        Image.new("RGB", (20, 10), (shade,) * 3).save(there / "picture.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = calibration_images(model, str(tmp_path), (3, 8, 8), 2)
    assert found.shape == (2, 3, 8, 8)
    assert found[0].unique().tolist() == [-2.0]
    assert found[1].unique().tolist() == [2.0]


def test_a_folder_without_pictures(model, tmp_path):
    with pytest.raises(CBAMError, match="holds no pictures"):
        calibration_images(model, str(tmp_path), (3, 8, 8), 2)


def test_a_set_by_name_gives_its_training_images():
    net = nn.Conv2d(1, 4, 3)
    net.cbam_config = Config("full", "", None, (), input_size=(1, 8, 8), mean=(0.3,), std=(0.4,))
    assert calibration_images(net, "digits", (1, 8, 8), 16).shape == (16, 1, 8, 8)


def test_the_run_says_what_it_validated_on(tmp_path):
    net = nn.Conv2d(1, 4, 3)
    net.cbam_config = Config("full", "", None, (), input_size=(1, 8, 8), mean=(0.3,), std=(0.4,))
    (tmp_path / "best").mkdir()
    (tmp_path / "config.yaml").write_text("data: digits\nlimit_val: 30\nval_fraction: 0.2\nimports: []\n")
    for folder in (tmp_path, tmp_path / "best"):
        found = validation_data(net, folder, None, (1, 8, 8), None)
        assert (len(found.val), found.mean) == (30, (0.3,)), "as the network was trained, not the set's own"
    assert len(validation_data(net, tmp_path, None, (1, 8, 8), 20).val) == 20
    assert validation_data(net, tmp_path / "absent" / "a" / "b" / "c", None, (1, 8, 8), None) is None


def test_accuracy_of_both():
    data = load_data("digits", limit_val=40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.arange(10.0))  # every image is a nine
    found = accuracy(model, lambda images: (-model(images),), data)
    assert (found.images, found.eager, found.exported, found.same) == (40, 0.1, 0.1, 0.0)
    assert str(found).startswith("top-1 10.00%")


def test_of_several_labels_all_have_to_be_right(tmp_path):
    for index in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    (tmp_path / "tags.csv").write_text("image,tags\n0.png,a;b\n1.png,a\n2.png,b\n3.png,a;b\n")
    data = load_data(tmp_path, image_size=8, labels=tmp_path / "tags.csv", whole=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 1.0]))  # both labels for every image
    found = accuracy(model, lambda images: (model(images) * torch.tensor([1.0, -1.0]),), data)
    assert (found.images, found.eager, found.exported, found.same) == (4, 0.5, 0.25, 0.0)
    assert str(found).startswith("all labels right 50.00%")
