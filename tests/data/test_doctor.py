from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

from cbam.data import check_folder
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder, truncate, two_sided_folder
from tests.data.test_pictures import png_header


def test_a_healthy_folder(tmp_path):
    report = check_folder(photo_folder(tmp_path))
    assert (report.errors, report.notices, report.bad, report.image_count) == ((), (), {}, 30)
    assert str(report) == (
        f"{tmp_path}: 30 images in 3 classes\n"
        f"  {tmp_path}: cat 10, cup 10, rocket 10\n"
        "  every image can be read"
    )


def test_every_kind_of_bad_file_is_counted_and_named(tmp_path):
    photo_folder(tmp_path)
    for number in range(7):
        truncate(tmp_path / "cat" / f"00{number}.jpg")
    (tmp_path / "cup" / "text.jpg").write_text("not an image")
    (tmp_path / "cup" / "bomb.png").write_bytes(png_header(40_000, 40_000))
    (tmp_path / "rocket" / "empty.jpg").touch()
    (tmp_path / "rocket" / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_folder(tmp_path)
    lines = {line.split(":")[0]: line for line in report.bad_lines()}
    assert set(lines) == {
        "7 truncated or damaged",
        "1 not a readable image",
        "1 too many pixels",
        "1 empty file",
        "1 broken link",
    }
    assert "cat/000.jpg (" in lines["7 truncated or damaged"]
    assert lines["7 truncated or damaged"].endswith("and 2 more")
    assert report.good_images(report.train)["cat"] == ["cat/007.jpg", "cat/008.jpg", "cat/009.jpg"]
    assert all(f"bad: {line}" in str(report) for line in lines.values())
    assert "every image can be read" not in str(report)
    assert report.errors == ()


def test_a_warning_about_size_is_left_to_the_cap(tmp_path):
    photo_folder(tmp_path, 2)
    (tmp_path / "cat" / "large.png").write_bytes(png_header(10_000, 10_000))  # Pillow warns, and opens it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [problem.kind for problem in check_folder(tmp_path).bad.values()] == ["too many pixels"]


def test_what_was_passed_over_is_named(tmp_path):
    photo_folder(tmp_path, 2)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / "phone.heic").touch()
    shutil.copy(tmp_path / "cat" / "000.jpg", tmp_path / "loose.jpg")
    notices = "\n".join(check_folder(tmp_path).notices)
    assert "1 hidden, skipped: .ipynb_checkpoints." in notices
    assert "do not end like images" in notices
    assert ": cat/phone.heic." in notices
    assert "1 ignored, as they lie beside the class folders: loose.jpg." in notices


def test_empty_classes_are_named(tmp_path):
    photo_folder(tmp_path, 2)
    (tmp_path / "dog").mkdir()
    (tmp_path / "eel").mkdir()
    assert "2 empty class(es)" in check_folder(tmp_path).errors[0]
    assert "dog, eel" in check_folder(tmp_path).errors[0]


def test_a_class_without_a_good_image_is_empty_too(tmp_path):
    photo_folder(tmp_path, 1)
    truncate(tmp_path / "cup" / "000.jpg")
    assert ": cup." in check_folder(tmp_path).errors[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no class folders"),
        (lambda root: photo_folder(root, 2, ("cat",)), "only one class, 'cat'. At least two"),
        (
            lambda root: photo_folder(root / "unzipped", 2),
            "only one class, 'unzipped'. Did you mean .*unzipped",
        ),
    ],
)
def test_too_few_classes(tmp_path, make, message):
    make(tmp_path)
    assert re.search(message, check_folder(tmp_path).errors[0])


@pytest.fixture
def ordinary_user_folder():
    """A folder that an ordinary user may enter; the superuser, whom no permission stops, becomes one for a while."""
    with tempfile.TemporaryDirectory() as name:
        root, user = Path(name), os.geteuid()
        root.chmod(0o755)
        yield root, lambda: os.seteuid(65534 if user == 0 else user)
        os.seteuid(user)
        for path in root.iterdir():
            path.chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_an_error(ordinary_user_folder):
    root, become_ordinary = ordinary_user_folder
    photo_folder(root, 2)
    (root / "cup" / "000.jpg").chmod(0o000)
    (root / "cat").chmod(0o000)
    become_ordinary()
    report = check_folder(root)
    assert f"1 folder(s) cannot be listed: {root / 'cat'}." in report.errors
    assert ["Permission denied" in problem.detail for problem in report.bad.values()] == [True]


def test_sides_with_different_classes(tmp_path):
    two_sided_folder(tmp_path)
    shutil.move(tmp_path / "val" / "cat", tmp_path / "val" / "cats")
    (error,) = check_folder(tmp_path).errors
    assert error == "the classes of training and validation differ; only in train/: cat; only in val/: cats."


def test_both_sides_are_checked(tmp_path):
    two_sided_folder(tmp_path)
    truncate(tmp_path / "val" / "cup" / "001.jpg")
    report = check_folder(tmp_path)
    assert report.image_count == 27
    assert list(report.bad) == [tmp_path / "val" / "cup" / "001.jpg"]
    assert f"  {tmp_path / 'val'}: cat 3, cup 2, rocket 3" in str(report)


def test_the_folder_is_left_as_it_was(tmp_path):
    two_sided_folder(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    check_folder(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(CBAMError, match="does not exist"):
        check_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CBAMError, match="a file, not a folder"):
        check_folder(tmp_path / "file")
    for cap in (0, 10**9):
        with pytest.raises(CBAMError, match="max_pixels must lie between 1 and 178,956,970"):
            check_folder(tmp_path, max_pixels=cap)
