from dataclasses import replace

import pytest
import torch
import yaml

from cbam.compare.config import CompareConfig
from cbam.errors import CBAMError
from cbam.runs.numbered import with_folder
from cbam.train.batch_size import AUTO
from cbam.train.config import TrainConfig, TrainRunConfig
from cbam.train.images import ImageConfig
from tests.data.pictures_on_disk import photo_folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("pictures"), 4)


FORMS = [ImageConfig, TrainRunConfig, CompareConfig]
OUTSIDE = [
    ({"mean": "half"}, "--mean takes numbers with commas"),
    ({"std": "0.5,x"}, "--std takes numbers with commas"),
    ({"mean": ""}, "--mean takes numbers with commas"),
    ({"image_size": 0}, "--image-size must be at least 1, given 0"),
    ({"limit_train": 0}, "--limit-train must be at least 1, given 0"),
    ({"limit_val": -3}, "--limit-val must be at least 1, given -3"),
    ({"val_fraction": 1.0}, "--val-fraction must be between 0 and 1, given 1.0"),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(("given", "message"), OUTSIDE)
def test_what_is_outside_its_range_is_refused_whoever_asks(form, given, message):
    with pytest.raises(CBAMError, match=message):
        form(data="digits", **given)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_one_number_normalises_all_channels_and_three_one_each(form, pictures):
    one = form(data=str(pictures), image_size=8, mean="0.5", std="0.25").load()
    assert (one.mean, one.std) == ((0.5,) * 3, (0.25,) * 3)
    three = form(data=str(pictures), image_size=8, mean="0.5,0.4,0.3", std="0.25").load()
    assert three.mean == (0.5, 0.4, 0.3)
    plain = form(data=str(pictures), image_size=8).load()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plain.mean, plain.std))
    assert torch.allclose(one.val[0, 0][0] * 0.25 + 0.5, plain.val[0, 0][0] * std + mean, atol=1e-6)


def test_gray_images_take_one_number_and_refuse_three():
    data = ImageConfig(data="digits", mean="0.5", std="0.5").load()
    assert (data.mean, data.std) == ((0.5,), (0.5,))
    with pytest.raises(CBAMError, match="mean needs 1 value"):
        ImageConfig(data="digits", mean="0.5,0.5,0.5").load()


def test_limits_and_split_reach_the_images(pictures):
    data = ImageConfig(data=str(pictures), image_size=8, val_fraction=0.5, limit_train=3, limit_val=3).load()
    assert (len(data.train), len(data.val)) == (3, 3)


@pytest.mark.parametrize("form", [TrainRunConfig, CompareConfig], ids=lambda form: form.__name__)
@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"model": "resnet20"}, 32),
        ({"model": "resnet20", "image_size": 24}, 24),
        ({"model": "resnet50"}, 224),
        ({"model": "timm/resnet18"}, 224),
    ],
    ids=str,
)
def test_images_of_a_folder_have_the_size_that_the_model_is_made_for(form, given, size, pictures):
    config = form(data=str(pictures), **given)
    assert config.load().input_size == (3, size, size)
    assert config.resolved()["image_size"] == (None if size == 224 else size)  # as runs have it on record


def test_built_in_images_keep_their_size():
    config = CompareConfig(data="digits", model="resnet20")
    assert config.load().input_size == (1, 8, 8)
    assert config.resolved()["image_size"] is None


def test_how_images_are_prepared_is_on_record(pictures):
    """By image size where nothing is given: a run that goes on depends on it, and so do predictions later."""
    small = TrainRunConfig(data=str(pictures), model="resnet20").resolved()
    large = TrainRunConfig(data=str(pictures), model="resnet50").resolved()
    names = ("augment", "crop", "flip", "resize")
    assert [small[name] for name in names] == ["crop", "shift", 0.5, 32]
    assert [large[name] for name in names] == ["crop", 0.08, 0.5, 256]
    plain = CompareConfig(data=str(pictures), augment="none").resolved()
    assert [plain[name] for name in names] == ["none", None, None, 32]
    assert ImageConfig(data="digits").resolved()["augment"] == "crop"


@pytest.mark.parametrize("form", [TrainRunConfig, CompareConfig], ids=lambda form: form.__name__)
def test_a_run_of_an_earlier_version_goes_on_with_its_preparation(form, pictures):
    now = form(data=str(pictures), model="resnet20")
    new = ("augment", "crop", "flip", "resize")
    before = {name: value for name, value in now.resolved().items() if name not in new}
    assert form.differences(before, now.resolved()), "at this size the preparation has changed"
    again = now.as_started(before)
    assert form.differences(before, again.resolved()) == []
    data = again.load()
    assert data.resize == 37
    assert data.prepared[0] == "random crops of 8 to 100 % of the area, mirrored at random"
    asked = form(data=str(pictures), model="resnet20", augment="trivial").as_started(before)
    assert "augment: crop there, trivial now" in form.differences(before, asked.resolved())
    assert now.as_started(now.resolved()) == now.as_started(None) == now


@pytest.mark.parametrize("form", [TrainRunConfig, CompareConfig], ids=lambda form: form.__name__)
def test_built_in_images_are_prepared_as_before(form):
    now = form(data="digits", model="resnet20")
    before = {name: value for name, value in now.resolved().items() if name not in ("augment", "crop")}
    assert form.differences(before, now.as_started(before).resolved()) == []


def test_without_an_output_an_earlier_run_is_found_again(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainRunConfig(data=str(pictures), model="resnet20")
    stored = {
        name: value for name, value in config.resolved().items() if name not in ("augment", "crop", "resize")
    }
    auto = replace(config, train=TrainConfig(batch_size=AUTO))
    for before, now in ((stored, config), (config.resolved() | {"batch_size": 48}, auto)):
        config.folder.mkdir(parents=True, exist_ok=True)
        (config.folder / "config.yaml").write_text(yaml.safe_dump(before))
        assert with_folder(now).folder == config.folder
    assert with_folder(replace(config, augment="trivial")).folder != config.folder
