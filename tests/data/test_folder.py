from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from cbam.data import load_data
from cbam.data.pictures import BadImage
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder, save_cuts, truncate, two_sided_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels_of(item):
    """Undo the normalisation."""
    return (item * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def test_two_sides(tmp_path):
    data = load_data(two_sided_folder(tmp_path), image_size=32)
    assert (data.name, data.classes, data.input_size) == (
        tmp_path.name,
        ("cat", "cup", "rocket"),
        (3, 32, 32),
    )
    assert (data.mean, data.std, data.notices) == (MEAN, STD, ())
    assert data.train.labels == [0] * 6 + [1] * 6 + [2] * 6
    assert data.val.labels == [0] * 3 + [1] * 3 + [2] * 3
    assert "18 training and 9 validation images" in data.source
    item, label = data.train[0, 17]
    assert (item.shape, item.dtype, label) == ((3, 32, 32), torch.float32, 2)


def test_the_size_is_224_unless_given(tmp_path):
    data = load_data(two_sided_folder(tmp_path))
    assert data.input_size == (3, 224, 224)
    assert data.val[0, 0][0].shape == data.train[0, 0][0].shape == (3, 224, 224)
    assert data.val.picture(0).size == (224, 224)


def test_one_folder_is_split_by_class_and_for_good(tmp_path):
    data = load_data(photo_folder(tmp_path))
    assert Counter(data.train.labels) == {0: 8, 1: 8, 2: 8}
    assert Counter(data.val.labels) == {0: 2, 1: 2, 2: 2}
    assert not set(data.train.names) & set(data.val.names)
    again = load_data(tmp_path)
    assert (again.train.names, again.val.names) == (data.train.names, data.val.names)
    assert load_data(tmp_path, split_seed=1).val.names != data.val.names
    assert len(load_data(tmp_path, val_fraction=0.5).val) == 15
    save_cuts(tmp_path / "dog", "cat", 10)
    kept = [name for name in load_data(tmp_path).val.names if not name.startswith("dog/")]
    assert kept == data.val.names


def test_validation_is_not_augmented_and_is_what_the_picture_shows(tmp_path):
    data = load_data(two_sided_folder(tmp_path), image_size=40)
    item, _ = data.val[0, 1]
    assert torch.equal(item, data.val.with_seed(7)[3, 1][0])
    shown = torch.from_numpy(np.array(data.val.picture(1))).permute(2, 0, 1)
    assert torch.allclose(pixels_of(item), shown.float(), atol=1e-3)


def test_validation_resizes_the_short_side_and_takes_the_centre(tmp_path):
    two_sided_folder(tmp_path)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200  # the middle square; the crop is 7/8 of it
    Image.fromarray(wide).save(tmp_path / "val" / "cat" / "000.png")
    val = load_data(tmp_path, image_size=56, resize=64).val
    picture = np.asarray(val.picture(val.names.index("cat/000.png")))
    assert picture.shape == (56, 56, 3)
    assert (picture == 200).all()


def test_training_crops_and_mirrors(tmp_path):
    two_sided_folder(tmp_path)
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.arange(0, 256, 4)[None, :]  # red grows to the right
    Image.fromarray(ramp).save(tmp_path / "train" / "cat" / "000.png")
    train = load_data(tmp_path, image_size=16, crop=0.08).train
    index = train.names.index("cat/000.png")
    red = torch.stack([pixels_of(train[epoch, index][0])[0] for epoch in range(60)])
    rises = red[:, 8, -1] > red[:, 8, 0]
    assert 15 < int(rises.sum()) < 45
    spans = (red[:, 8, -1] - red[:, 8, 0]).abs()
    assert float(spans.max()) > 2 * float(spans.min())


def test_training_draws_leave_the_global_generator_alone(tmp_path):
    train = load_data(two_sided_folder(tmp_path), image_size=16).train
    torch.manual_seed(1)
    first = train[0, 0][0]
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, train[0, 0][0])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_generator_is_restored_when_a_file_has_gone(tmp_path):
    train = load_data(two_sided_folder(tmp_path), image_size=16).train
    (tmp_path / "train" / train.names[0]).unlink()
    state = torch.get_rng_state()
    with pytest.raises(BadImage, match="missing file"):
        train[0, 0]
    assert torch.equal(state, torch.get_rng_state())


def test_bad_images_stop_or_are_left_out(tmp_path):
    photo_folder(tmp_path)
    truncate(tmp_path / "cat" / "003.jpg")
    (tmp_path / "cup" / "note.jpg").write_text("not an image")
    with pytest.raises(CBAMError) as caught:
        load_data(tmp_path)
    message = str(caught.value)
    assert "2 of 31 images cannot be used" in message
    assert "1 truncated or damaged: cat/003.jpg" in message
    assert "1 not a readable image: cup/note.jpg" in message
    assert message.endswith("by typing: --bad-images skip")
    data = load_data(tmp_path, bad_images="skip")
    names = data.train.names + data.val.names
    assert len(names) == 29
    assert not {"cat/003.jpg", "cup/note.jpg"} & set(names)
    assert data.notices[0].startswith("2 bad images were left out. ")
    assert "cup/note.jpg" in data.notices[0]


def test_what_makes_training_impossible_stops_even_when_skipping(tmp_path):
    photo_folder(tmp_path, 2)
    (tmp_path / "dog").mkdir()
    with pytest.raises(CBAMError, match=r"cannot be trained on as it is\.\n1 empty class"):
        load_data(tmp_path, bad_images="skip")


def test_a_lonely_image_trains_and_is_reported(tmp_path):
    photo_folder(tmp_path)
    save_cuts(tmp_path / "dog", "cat", 1)
    data = load_data(tmp_path)
    assert data.train.labels.count(data.classes.index("dog")) == 1
    assert "one image only, which trains and does not validate: dog." in data.notices[0]


def test_limits_are_balanced_and_in_file_order(tmp_path):
    data = load_data(two_sided_folder(tmp_path), limit_train=7, limit_val=3)
    cats, cups, rockets = ([f"{name}/{k:03d}.jpg" for k in range(3)] for name in data.classes)
    assert data.train.names == cats + cups[:2] + rockets[:2]
    assert data.val.names == ["cat/000.jpg", "cup/000.jpg", "rocket/000.jpg"]
    assert "7 training and 3 validation" in data.source
    with pytest.raises(CBAMError, match="limit_train must leave"):
        load_data(tmp_path, limit_train=2)


def test_unknown_words_are_refused_before_any_file_is_read(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(CBAMError, match="unknown bad_images 'skp'"):
        load_data(tmp_path, bad_images="skp")


def test_test_as_validation_is_said(tmp_path):
    data = load_data(two_sided_folder(tmp_path, "test"))
    assert any("test/ are the validation images" in notice for notice in data.notices)
