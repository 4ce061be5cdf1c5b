from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest

from cbam.data.shards import index as indexing
from cbam.data.shards import storage
from cbam.data.shards.index import FILE_NAME, cached_file, load_index, read_index
from cbam.data.shards.locations import find_shards
from cbam.errors import CBAMError
from tests.data.shards.tars import samples, serving, shard_folder, tar_bytes


@pytest.fixture
def folder(tmp_path):
    return shard_folder(tmp_path / "set")


@pytest.fixture
def scans(monkeypatch):
    """The names of the shards whose headers were read."""
    seen, real = [], indexing.scan_tar

    def scan(stream, name, *rest):
        seen.append(name.rpartition("/")[2])
        return real(stream, name, *rest)

    monkeypatch.setattr(indexing, "scan_tar", scan)
    return seen


def index_of(place):
    return load_index(find_shards(str(place)), {})


def test_it_is_built_once_and_holds_twelve_bytes_a_sample(folder, scans):
    index = index_of(folder)
    assert sorted(scans) == ["train-000.tar", "train-001.tar", "train-002.tar", "val-000.tar"]
    assert index.path == folder / FILE_NAME
    assert index.path.stat().st_size == index.start + 12 * 16
    scans.clear()
    again = index_of(folder)
    assert scans == []
    assert isinstance(again.rows.labels, np.memmap)
    for name, shard in again.shards.items():
        assert again.rows_of(shard).labels.tolist() == [0, 1, 0, 1]
        assert (folder / name).stat().st_size == shard.stamp.size


def test_a_changed_shard_is_read_again_and_no_other(folder, scans):
    index_of(folder)
    scans.clear()
    (folder / "train-001.tar").write_bytes(tar_bytes(*samples(range(6), classes=3)))
    (folder / "train-003.tar").write_bytes(tar_bytes(*samples(range(20, 22))))
    index = index_of(folder)
    assert sorted(scans) == ["train-001.tar", "train-003.tar"]
    assert index.rows_of(index.shards["train-001.tar"]).labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert index.shards["train-001.tar"].top_label == 2
    assert index.length == 4 + 6 + 4 + 2 + 4


def test_a_part_of_the_set_does_not_forget_the_rest(folder, scans):
    index_of(folder)
    scans.clear()
    (folder / "train-000.tar").touch()
    load_index(find_shards(str(folder), train="train-000.tar", val="val-000.tar"), {})
    assert scans == ["train-000.tar"]
    index_of(folder)
    assert scans == ["train-000.tar"]


def test_where_users_cannot_write_it_goes_into_their_cache(folder, scans, monkeypatch):
    real = indexing.write_atomically

    def refusing(path, content):
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, content)

    monkeypatch.setattr(indexing, "write_atomically", refusing)  # the superuser may write everywhere
    assert index_of(folder).path == cached_file(str(folder))
    assert not (folder / FILE_NAME).exists()
    scans.clear()
    index_of(folder)
    assert scans == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"CBAMIDX9" + content[8:],
        lambda content: content[:8] + b"\xff" * 8 + content[16:],
        lambda content: content[:16] + b"[" * (len(content) - 16),
        lambda content: content.replace(b"[", b"{", 1),
    ],
)
def test_a_spoilt_index_is_made_again(folder, scans, spoil):
    path = index_of(folder).path
    path.write_bytes(spoil(path.read_bytes()))
    assert read_index(path) is None
    scans.clear()
    assert index_of(folder).length == 16
    assert len(scans) == 4


def test_a_flipped_bit_in_the_rows_gives_no_image_another_class(folder, scans, caplog):
    index = index_of(folder)
    rows = index.shards["train-001.tar"].first
    for column in range(3):
        content = bytearray(index.path.read_bytes())
        content[index.start + 4 * (column * 16 + rows)] ^= 1
        index.path.write_bytes(content)
        scans.clear()
        again = index_of(folder)
        assert scans == ["train-001.tar"]
        assert "is damaged (the rows of train-001.tar): these headers are read again" in caplog.text
        assert again.rows.labels.tolist() == [0, 1] * 8
        index_of(folder)
        assert scans == ["train-001.tar"]


def test_a_damaged_part_stays_known_as_damaged_when_another_is_written(folder, scans):
    index = index_of(folder)
    content = bytearray(index.path.read_bytes())
    content[index.start + 4 * (2 * 16 + index.shards["train-001.tar"].first)] ^= 1
    index.path.write_bytes(content)
    (folder / "train-000.tar").touch()
    load_index(find_shards(str(folder), train="train-000.tar", val="val-000.tar"), {})
    scans.clear()
    assert index_of(folder).rows.labels.tolist() == [0, 1] * 8
    assert scans == ["train-001.tar"]


def test_a_highest_class_that_is_not_that_of_the_rows(folder, scans, monkeypatch):
    monkeypatch.setattr(indexing, "_top_label", lambda labels: 5)
    for path in folder.glob("*.tar"):
        path.write_bytes(tar_bytes(*samples(range(2), classes=1)))
    index_of(folder)
    monkeypatch.setattr(indexing, "_top_label", lambda labels: int(labels.max()))
    scans.clear()
    assert index_of(folder).shards["val-000.tar"].top_label == 0
    assert len(scans) == 4


def test_a_damaged_shard_is_named_and_nothing_is_written(folder):
    path = folder / "train-002.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CBAMError, match=r"train-002\.tar .*cut off"):
        index_of(folder)
    assert not (folder / FILE_NAME).exists()


def test_a_pickled_index_opens_the_file_again(folder):
    index = index_of(folder)
    assert index.rows.labels.sum() == 8
    content = pickle.dumps(index)
    assert "rows" not in vars(pickle.loads(content))
    assert pickle.loads(content).rows.labels.tolist() == index.rows.labels.tolist()


def test_remote_shards_use_the_index_beside_them(folder, scans, tmp_path):
    pytest.importorskip("aiohttp")
    index_of(folder)
    os.utime(folder / "train-000.tar", (1, 1))  # as a copy elsewhere has other times
    with serving(folder) as (url, asked):
        scans.clear()
        index = index_of(url)
        assert (index.length, scans, index.path) == (16, [], cached_file(url))
        assert [path for path, _ in asked].count(f"/{FILE_NAME}") == 1
        asked.clear()
        index_of(url)
        assert f"/{FILE_NAME}" not in [path for path, _ in asked]  # the copy in the cache is enough


def test_remote_shards_without_an_index_are_read(folder, scans, tmp_path):
    pytest.importorskip("aiohttp")
    local = index_of(folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns(FILE_NAME))
    with serving(moved) as (url, _):
        index = index_of(url)
    assert index.shards.keys() == local.shards.keys()
    for column in ("blocks", "sizes", "labels"):
        assert np.array_equal(getattr(index.rows, column), getattr(local.rows, column))


def test_a_server_that_stops_in_the_middle_is_tried_again(folder, scans, monkeypatch):
    """The body is shorter than its announced length: an error of the client's package, while headers are read."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "_FIRST_WAIT_S", 0.01)
    with serving(folder, cut=1) as (url, _):
        assert index_of(url).length == 16
    assert len(scans) == 5
    shutil.rmtree(cached_file(url).parent)
    with (
        serving(folder, cut=99) as (url, _),
        pytest.raises(CBAMError, match=r"\.tar could not be read in 4 tries: .*payload"),
    ):
        index_of(url)


def test_a_server_that_never_answers_ends_the_wait(folder, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(storage, "_SILENCE_S", 0.2)
    with serving(folder, silent=True) as (url, _):
        with pytest.raises(CBAMError, match=r"could not be read in 4 tries: no answer within 0\.2 seconds"):
            load_index(find_shards(f"{url}/train-000.tar"), {})
        with pytest.raises(CBAMError, match=r"cannot be listed \(.*0\.2 seconds"):
            index_of(url)
