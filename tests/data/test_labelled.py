from __future__ import annotations

import pytest
import torch

from cbam.data import load_data
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder, truncate

KINDS = ("cat", "cup", "rocket")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos"), 6)


NAMES = [f"{kind}/{number:03d}.jpg" for kind in KINDS for number in range(6)]


@pytest.fixture
def load(tmp_path, photos):
    def write(lines, header="file,label", options="", root=photos, **how):
        (tmp_path / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
        return load_data(root, labels=f"{tmp_path / 'labels.csv'}{options}", image_size=16, **how)

    return write


def classes(names=NAMES):
    return [f"{name},{name.partition('/')[0]}" for name in names]


def test_a_table_gives_what_class_folders_give(load, photos):
    folder, table = load_data(photos, image_size=16), load(classes())
    assert table.classes == folder.classes
    assert sorted(table.val.names) == sorted(folder.val.names), "split by class and name as a folder is"
    at, there = table.val.names.index(folder.val.names[0]), folder.val.names[0]
    assert torch.equal(table.val[0, at][0], folder.val[0, folder.val.names.index(there)][0])
    assert "files from column 'file', labels from 'label': multiclass" in table.notices[0]


def test_a_column_says_who_validates(load):
    lines = [f"{line},{'val' if index % 3 == 0 else 'train'}" for index, line in enumerate(classes())]
    data = load(lines, "file,label,split")
    assert data.val.names == NAMES[::3]
    assert len(data.train) == 12
    tested = load([line.replace(",val", ",test") for line in lines], "file,label,split")
    assert tested.val.names == NAMES[::3]
    assert "the 6 test images validate" in "".join(tested.notices)
    ignored = load(lines, "file,label,split", "?split=none")
    assert ignored.val.names != NAMES[::3]


def test_names_without_their_suffix(load):
    assert load([line.replace(".jpg", "") for line in classes()]).val.names[0].endswith(".jpg")


def test_numbers_stand_in_the_order_of_numbers(load):
    lines = [f"{name},{'10' if 'cat' in name else '9'}" for name in NAMES]
    assert load(lines).classes == ("9", "10")


def several(names=NAMES):
    """What a name says, and "early" for the first three of each."""
    return [f"{name},{name.partition('/')[0]}{';early' if name[-5] in '012' else ''}" for name in names]


def test_several_labels_are_ones_in_a_row(load):
    data = load(several())
    assert data.task == "multilabel"
    assert data.classes == ("cat", "cup", "early", "rocket")
    index = data.train.names.index(next(name for name in data.train.names if name.startswith("cup/00")))
    image, target = data.train[0, index]
    early = data.train.names[index][-5] in "012"
    assert image.shape == (3, 16, 16)
    assert target.tolist() == [0.0, 1.0, float(early), 0.0]
    assert data.identity["task"] == "multilabel"
    assert "task" not in load(classes()).identity, "runs of earlier versions have none"


def test_every_label_validates_also_a_rare_one(load):
    lines = [f"{line};rare" if index in (2, 9) else line for index, line in enumerate(several())]
    data = load(lines)
    rare = data.classes.index("rare")
    assert [sum(rare in of for of in side.labels) for side in (data.train, data.val)] == [1, 1]
    assert len(load(lines, limit_train=6).train) == 6


def test_images_without_any_label_are_counted(load):
    data = load([*several(NAMES[:-1]), f"{NAMES[-1]},"])
    assert "1 images have none of the labels" in " ".join(data.notices)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat/no.jpg,cat", "cat/nor.jpg,cup"], r"2 missing files below .*: cat/no.jpg, cat/nor.jpg"),
        ([classes()[0], classes()[0]], r"1 files listed more than once, with the same labels: cat/000.jpg"),
        (
            [classes()[0], "cat/000.jpg,cup"],
            r"1 files listed more than once, with different labels: cat/000.jpg",
        ),
        ([",cat"], r"1 rows without a file: line 20"),
        (["cat/no.jpg,"], r"1 rows without a class: line 20"),
    ],
)
def test_every_problem_is_counted_and_named(load, lines, message):
    with pytest.raises(CBAMError, match=message):
        load([*classes(), *lines] if "more than once" not in message else [*classes()[1:], *lines])


def test_all_problems_are_said_at_once(load):
    with pytest.raises(CBAMError) as told:
        load([*classes(), "cat/no.jpg,cat", ",cup"])
    assert "missing files" in str(told.value)
    assert "rows without a file" in str(told.value)


def test_one_class_is_none(load):
    with pytest.raises(CBAMError, match=r"holds 1 classes: cat\. At least 2"):
        load([f"{name},cat" for name in NAMES])


def test_unknown_sides_are_refused(load):
    lines = [f"{line},fold{number % 2}" for number, line in enumerate(classes())]
    with pytest.raises(CBAMError, match=r"18 rows whose 'split' is neither train, val nor test.*split=none"):
        load(lines, "file,label,split")


def test_every_class_needs_training_images(load):
    lines = [f"{line},{'val' if 'cat' in line else 'train'}" for line in classes()]
    with pytest.raises(CBAMError, match="1 classes have no training image: cat"):
        load(lines, "file,label,split")


def test_bad_images_stop_or_are_left_out(load, tmp_path):
    root = photo_folder(tmp_path / "photos", 6)
    truncate(root / "cat" / "000.jpg")
    with pytest.raises(CBAMError, match=r"1 of 18 images cannot be used: cat/000.jpg \(truncated"):
        load(classes(), root=root)
    data = load(classes(), root=root, bad_images="skip")
    assert len(data.train) + len(data.val) == 17


@pytest.mark.parametrize("data", ["digits", "hf:beans", "shards:x"])
def test_only_a_folder_takes_a_table(data):
    with pytest.raises(CBAMError, match="has labels of its own"):
        load_data(data, labels="labels.csv")
