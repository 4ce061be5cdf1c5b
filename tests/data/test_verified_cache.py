from __future__ import annotations

import os

import pytest

from cbam.data import check_folder, doctor, verified_cache
from tests.data.pictures_on_disk import photo_folder, truncate


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """The names of the files that were decoded; every folder is large enough to be remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    monkeypatch.setattr(doctor, "WORTH_IT", 1)
    names, real = [], doctor.check_image

    def check(path, max_pixels):
        names.append(path.name)
        real(path, max_pixels)

    monkeypatch.setattr(doctor, "check_image", check)
    return names


@pytest.fixture
def folder(tmp_path):
    return photo_folder(tmp_path / "photos", 4, ("cat", "cup"))


def test_good_files_are_decoded_once(folder, seen):
    assert check_folder(folder).bad == {}
    assert len(seen) == 8
    seen.clear()
    assert check_folder(folder).bad == {}
    assert seen == []


def test_changed_and_bad_files_are_decoded_again(folder, seen):
    truncate(folder / "cat" / "001.jpg")
    for _ in range(2):
        assert [path.name for path in check_folder(folder).bad] == ["001.jpg"]
    assert len(seen) == 9  # the bad one twice
    seen.clear()
    content = (folder / "cup" / "002.jpg").read_bytes()
    (folder / "cup" / "002.jpg").write_bytes(content[:-200].ljust(len(content), b"\0"))
    status = (folder / "cup" / "003.jpg").stat()
    os.utime(folder / "cup" / "003.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    check_folder(folder)
    assert sorted(seen) == ["001.jpg", "002.jpg", "003.jpg"]


def test_another_cap_judges_anew(folder, seen):
    check_folder(folder)
    assert len(check_folder(folder, max_pixels=100).bad) == 8


@pytest.mark.parametrize("content", [b"", b"1234567", b"x" * 80])
def test_a_spoilt_cache_costs_time_only(folder, seen, content):
    check_folder(folder)
    file = verified_cache.CheckedFiles(folder, doctor.DEFAULT_MAX_PIXELS).file
    file.write_bytes(content)
    assert check_folder(folder).bad == {}
    assert len(seen) == 16


def test_a_file_that_has_gone_is_never_a_good_one(folder, seen):
    check_folder(folder)
    verified_cache.CheckedFiles(folder, doctor.DEFAULT_MAX_PIXELS).file.write_bytes(bytes(80))
    (folder / "cat" / "link.jpg").symlink_to(folder / "gone.jpg")
    assert [path.name for path in check_folder(folder).bad] == ["link.jpg"]


def test_a_cache_that_cannot_be_written_is_done_without(folder, seen, tmp_path):
    (tmp_path / "cache-home").write_text("a file where the folder should be")
    assert check_folder(folder).bad == {}
    assert check_folder(folder).bad == {}
    assert len(seen) == 16


def test_small_folders_are_not_remembered(folder, seen, monkeypatch):
    monkeypatch.setattr(doctor, "WORTH_IT", 9)
    check_folder(folder)
    check_folder(folder)
    assert len(seen) == 16
