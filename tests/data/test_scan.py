from __future__ import annotations

import pytest

from cbam.data.scan import find_layout, scan_side, some
from tests.data.pictures_on_disk import photo_folder, two_sided_folder


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test", "Val"])
def test_the_validation_side_is_found_by_name(tmp_path, name):
    layout = find_layout(two_sided_folder(tmp_path, name))
    assert (layout.train, layout.val) == (tmp_path / "train", tmp_path / name)
    assert bool(layout.notices) == (name.lower() != "val")
    assert all(f"{name}/ are the validation images" in notice for notice in layout.notices)


def test_val_goes_before_test_and_the_rest_is_named(tmp_path):
    two_sided_folder(tmp_path)
    photo_folder(tmp_path / "test", 1)
    photo_folder(tmp_path / "extra", 1)
    layout = find_layout(tmp_path)
    assert layout.val == tmp_path / "val"
    assert layout.notices == ("Not used, beside train/ and val/: extra, test.",)


def test_train_alone_is_split(tmp_path):
    photo_folder(tmp_path / "train", 1)
    layout = find_layout(tmp_path)
    assert (layout.train, layout.val) == (tmp_path / "train", None)
    assert "no val/ beside train/" in layout.notices[0]


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path / "train" / "1.jpg")
    touch(tmp_path / "bus" / "1.jpg")
    assert find_layout(tmp_path).train == tmp_path
    assert scan_side(tmp_path).classes == ("bus", "train")


def test_files_are_sorted_into_images_and_the_rest(tmp_path):
    for name in (
        "b/2.JPG",
        "b/1.png",
        "b/deep/er/0.webp",
        "a/x.tiff",
        "a/notes.txt",
        "a/.DS_Store",
        "a/._x.tiff",
        "a/.ipynb_checkpoints/x-checkpoint.jpg",
        ".ipynb_checkpoints/x.jpg",
        "__MACOSX/x.jpg",
        "loose.jpg",
        "labels.csv",
    ):
        touch(tmp_path / name)
    side = scan_side(tmp_path)
    assert side.images == {"a": ["a/x.tiff"], "b": ["b/1.png", "b/2.JPG", "b/deep/er/0.webp"]}
    assert side.others == ["a/notes.txt"]
    assert side.loose == ["loose.jpg"]
    assert sorted(side.hidden) == [
        ".ipynb_checkpoints",
        "__MACOSX",
        "a/.DS_Store",
        "a/._x.tiff",
        "a/.ipynb_checkpoints",
    ]


def test_links_are_followed_and_rings_and_breaks_survived(tmp_path):
    photo_folder(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "b" / "cup").symlink_to(tmp_path / "elsewhere" / "cup")
    (root / "b" / "ring").symlink_to(root / "b")
    (root / "b" / "gone").symlink_to(tmp_path / "gone")
    side = scan_side(root)
    assert side.images == {"a": ["a/000.jpg", "a/001.jpg"], "b": ["b/cup/000.jpg", "b/cup/001.jpg", "b/gone"]}


def test_messages_name_a_few_and_count_the_rest():
    assert some([f"{k}" for k in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
    assert some(["only"]) == "only"
    assert some(["\x1b[31mred.jpg", "\udcff.jpg"]) == "'\\x1b[31mred.jpg', '\\udcff.jpg'"
