from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cbam.data import fashion_mnist, load_data
from cbam.data.fashion_mnist import CLASSES, DEBIAN_FOLDER, ENVIRONMENT_VARIABLE
from cbam.errors import CBAMError
from tests.data.idx_files import tiny_fashion_mnist
from tests.data.pictures_on_disk import photo_folder


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def test_digits_are_scikit_learns():
    data = load_data("digits")
    assert (data.name, data.input_size, len(data.classes)) == ("digits", (1, 8, 8), 10)
    assert len(data.train) + len(data.val) == 1797
    assert 0.19 < len(data.val) / 1797 < 0.21
    pixels = torch.cat([data.train.images, data.val.images]).double() / 255
    assert pixels.max() == 1
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=5e-5)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=5e-5)


def test_digits_are_never_mirrored_and_fashion_is(tmp_path):
    assert not load_data("digits").train.augmentation.mirrors
    fashion = load_data(f"fashion-mnist:{tiny_fashion_mnist(tmp_path)}")
    assert fashion.train.augmentation.mirrors
    assert fashion.train.augmentation.crops
    assert fashion.val.augmentation.policy == "none"


def test_the_split_of_the_digits_follows_the_seed():
    first, again, other = (load_data("digits", split_seed=seed).val.images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_an_explicit_folder_and_the_variable(tmp_path, monkeypatch):
    folder = tiny_fashion_mnist(tmp_path)
    data = load_data(f"fashion-mnist:{folder}")
    assert (data.name, data.classes, data.input_size) == ("fashion-mnist", CLASSES, (1, 6, 5))
    assert (len(data.train), len(data.val), data.notices) == (20, 10, ())
    assert str(folder) in data.source
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    assert "from CBAM_FASHION_MNIST" in load_data("fashion-mnist").source


def test_the_digits_stand_in_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nowhere")
    data = load_data("fashion-mnist", download=False)
    assert (data.name, len(data.train) + len(data.val)) == ("digits", 1797)
    assert "downloading is switched off" in data.notices[0]
    assert "THESE ARE NOT FASHION-MNIST" in data.notices[1]
    assert "apt-get install dataset-fashion-mnist" in data.notices[1]


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = load_data("fashion-mnist", limit_train=1000, limit_val=500, download=False)
    assert data.input_size == (1, 28, 28)
    assert torch.bincount(torch.tensor(data.train.labels)).tolist() == [100] * 10
    assert torch.bincount(torch.tensor(data.val.labels)).tolist() == [50] * 10
    batch = torch.stack([item for item, _ in data.val.__getitems__([(0, index) for index in range(500)])])
    assert abs(float(batch.mean())) < 0.05
    assert abs(float(batch.std()) - 1) < 0.05
    assert np.asarray(data.val.picture(0)).shape == (28, 28, 3)


def test_image_size_resizes_what_lies_in_memory(tmp_path):
    small, large = load_data("digits"), load_data("digits", image_size=16)
    assert large.input_size == (1, 16, 16)
    assert large.train.images.dtype == torch.uint8
    halved = torch.nn.functional.avg_pool2d(large.val.images.float(), 2)
    assert (halved - small.val.images.float()).abs().mean() < 20
    assert torch.equal(load_data("digits", image_size=8).val.images, small.val.images)


def test_mean_and_std_are_the_users(tmp_path):
    data = load_data("digits", mean=[0.5], std=[0.25])
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    raw = load_data("digits", mean=[0], std=[1])
    assert torch.allclose(data.val[0, 0][0], (raw.val[0, 0][0] - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "mean needs 1 value"),
        ({"mean": [127.5]}, "0..1 scale, given \\(127.5,\\). Divide by 255"),
        ({"std": [0]}, "std must be above 0"),
        ({"std": [float("nan")]}, "std is on the 0..1 scale"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"limit_train": 9}, "limit_train must leave at least one image of each of the 10"),
        ({"limit_val": 0}, "limit_val must leave"),
        ({"val_fraction": 2}, "val_fraction must lie between 0 and 1"),
    ],
)
def test_arguments_that_make_no_sense(kwargs, message):
    with pytest.raises(CBAMError, match=message):
        load_data("digits", **kwargs)


@pytest.mark.parametrize("kwargs", [{"mean": [0.5, 0.5]}, {"std": [0, 1, 1]}, {"image_size": -1}])
def test_folders_check_the_same_arguments(tmp_path, kwargs):
    with pytest.raises(CBAMError):
        load_data(photo_folder(tmp_path, 2), **kwargs)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(CBAMError, match=r"no folder 'fashon-mnist'.* Did you mean 'fashion-mnist'\?"):
        load_data("fashon-mnist")
    with pytest.raises(
        CBAMError, match=r"no folder '/no/such/photos', and no built-in set of that name\. Give"
    ):
        load_data("/no/such/photos")
    for name in ("a" * 5000, f"shards:{'a' * 5000}"):
        with pytest.raises(CBAMError, match="File name too long"):
            load_data(name)


def test_a_folder_called_digits_is_meant_by_its_path(tmp_path, monkeypatch):
    photo_folder(tmp_path / "digits", 4)
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").input_size == (1, 8, 8)
    assert load_data("./digits").classes == ("cat", "cup", "rocket")
    assert load_data(Path("digits")).classes == ("cat", "cup", "rocket")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    photo_folder(tmp_path / "photos", 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("~/photos").name == "photos"


def test_the_source_of_a_built_in_set_counts_what_is_used():
    assert load_data("digits").source.endswith("1,438 training and 359 validation images.")
    limited = load_data("digits", limit_train=100, limit_val=50)
    assert limited.source.endswith("100 training and 50 validation images.")
    assert "359" not in limited.source
