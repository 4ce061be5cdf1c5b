from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from cbam.data import load_data, make_loader
from cbam.errors import CBAMError, MissingExtra
from tests.data.pictures_on_disk import photo_folder
from tests.data.shards.tars import jpeg

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def table(numbers, names=("cat", "dog"), image="image", label="label"):
    rows = {
        image: [{"bytes": jpeg(n), "path": None} for n in numbers],
        label: [n % len(names) for n in numbers],
    }
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def saved(tmp_path):
    datasets.DatasetDict(train=table(range(12)), test=table(range(20, 24))).save_to_disk(tmp_path / "beans")
    return tmp_path / "beans"


def test_a_saved_folder(saved):
    data = load_data(f"hf:{saved}", image_size=16)
    assert (data.name, data.classes, data.input_size) == ("beans", ("cat", "dog"), (3, 16, 16))
    assert (len(data.train), len(data.val), data.train.labels) == (12, 4, [0, 1] * 6)
    assert "train trains, test validates: 12 training" in data.source
    picture = data.train.picture(3)
    whole = Image.open(io.BytesIO(jpeg(3))).convert("RGB")
    assert picture.tobytes() == data.train._centre(whole).tobytes()
    assert data.train.identifier(3) == "train:3"
    assert data.train[1, 3][1] == 1


def test_workers_change_no_bit(saved):
    train = load_data(f"hf:{saved}", image_size=16).train
    both = [list(make_loader(train, batch_size=5, seed=1, shuffle=True, workers=w)) for w in (0, 2)]
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(*both, strict=True))


def test_splits_and_columns_by_option(tmp_path):
    sets = {
        "a": table(range(4), image="photo", label="kind"),
        "b": table(range(4, 10), image="photo", label="kind"),
    }
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "x")
    data = load_data(f"hf:{tmp_path / 'x'}?train=b&val=a&image=photo&label=kind", image_size=16)
    assert (len(data.train), len(data.val)) == (6, 4)


def test_one_split_is_split_and_limits_hold(tmp_path):
    table(range(20)).save_to_disk(tmp_path / "x")
    data = load_data(f"hf:{tmp_path / 'x'}", image_size=16, limit_train=6)
    assert (len(data.train), len(data.val), "is split by class" in data.source) == (6, 4, True)
    names = [data.train.identifier(k) for k in range(6)] + [data.val.identifier(k) for k in range(4)]
    assert len(set(names)) == 10
    assert (
        data.identity
        != load_data(f"hf:{tmp_path / 'x'}", image_size=16, split_seed=3, limit_train=6).identity
    )


def test_labels_that_are_words(tmp_path):
    rows = {"img": [{"bytes": jpeg(n), "path": None} for n in range(6)], "class": ["owl", "bat", "owl"] * 2}
    features = datasets.Features({"img": datasets.Image(), "class": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "x")
    data = load_data(f"hf:{tmp_path / 'x'}", image_size=16)
    assert data.classes == ("bat", "owl")
    assert sorted(data.train.labels + data.val.labels) == [0, 0, 1, 1, 1, 1]


def test_a_folder_of_images_through_datasets(tmp_path):
    """`load_dataset` knows folders of images itself; its rows hold paths instead of bytes."""
    data = load_data(f"hf:{photo_folder(tmp_path / 'photos', 4)}", image_size=16)
    assert data.classes == ("cat", "cup", "rocket")
    assert data.train[0, 0][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?image=imge", "unknown column 'imge'. Did you mean 'image'"),
        ("?label=x", "unknown column 'x'"),
        ("?train=trian", "unknown split 'trian'. Did you mean 'train'"),
        ("?imge=3", "unknown option 'imge'"),
    ],
)
def test_what_is_not_there(saved, options, message):
    with pytest.raises(CBAMError, match=message):
        load_data(f"hf:{saved}{options}")


def test_a_name_that_cannot_be_had(tmp_path):
    with pytest.raises(CBAMError, match="hf:no/such is no saved folder, and the hub does not give it"):
        load_data("hf:no/such")


def test_bad_images(tmp_path, saved):
    with pytest.raises(CBAMError, match="none can be skipped"):
        load_data(f"hf:{saved}", bad_images="skip")
    rows = {"image": [{"bytes": b"nonsense", "path": None}] * 4, "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "x")
    with pytest.raises(CBAMError, match=r"row \d of train: not a readable image"):
        load_data(f"hf:{tmp_path / 'x'}", image_size=16).train.picture(0)


def test_without_the_package_it_is_said_what_to_type(monkeypatch, saved):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'datasets'.*pip install 'torch-cbam\[datasets\]'"
    ):
        load_data(f"hf:{saved}")


def test_a_lone_test_split_does_not_validate_itself(tmp_path):
    datasets.DatasetDict(test=table(range(10))).save_to_disk(tmp_path / "x")
    data = load_data(f"hf:{tmp_path / 'x'}", image_size=16)
    assert (len(data.train), len(data.val), "test is split by class" in data.source) == (8, 2, True)
