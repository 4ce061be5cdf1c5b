from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from cbam.data.shards import storage
from cbam.data.shards.storage import MERGE_GAP, Stamp, Storage, stamp
from cbam.errors import CBAMError, MissingExtra
from tests.data.shards.tars import serving

CONTENT = bytes(range(256)) * 2048


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_ranges_come_back_in_the_order_asked(file):
    wanted = [(0, 300_000, 300_010), (0, 5, 9), (0, 0, 2), (0, 5, 9), (0, 7, 8)]
    assert Storage([str(file)]).read(wanted) == [CONTENT[a:b] for _, a, b in wanted]
    assert Storage([f"file://{file}"]).read([]) == []


def test_neighbours_are_one_read(file):
    wanted = [(0, 0, 10), (1, 10, 20), (0, 10 + MERGE_GAP, 20 + MERGE_GAP), (0, 10**6, 10**6 + 1)]
    runs = list(storage._merged(wanted))
    assert [run[:3] for run in runs] == [(0, 0, 20 + MERGE_GAP), (0, 10**6, 10**6 + 1), (1, 10, 20)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_thousands_of_files_are_not_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MOST_OPEN_FILES", 5)
    places = []
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(bytes([number]))
        places.append(str(tmp_path / f"{number}"))
    before, files = open_files(), Storage(places)
    assert open_files() == before
    assert [files.read([(number, 0, 1)])[0][0] for number in range(40)] == list(range(40))
    assert open_files() == before + 5
    del files
    assert open_files() == before


def _child(files, queue):
    queue.put(files.read([(0, 100, 104)]))


def test_a_worker_reads_for_itself(file):
    files = Storage([str(file)])
    files.read([(0, 0, 1)])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(files, queue))
    process.start()
    assert queue.get(timeout=120) == [CONTENT[100:104]]
    process.join()
    assert files.read([(0, 7, 8)]) == [CONTENT[7:8]]
    copy = pickle.loads(pickle.dumps(files))  # as workers get it that are not forked
    assert copy._open == {}
    assert copy.read([(0, 7, 8)]) == [CONTENT[7:8]]


def test_a_file_that_shrank_or_went_away(file):
    with pytest.raises(CBAMError, match=r"10 came\. Either the file has changed"):
        Storage([str(file)]).read([(0, len(CONTENT) - 10, len(CONTENT) + 10)])
    files = Storage([str(file)])
    file.unlink()
    with pytest.raises(CBAMError, match="cannot be read: No such file"):
        files.read([(0, 0, 1)])
    with pytest.raises(CBAMError, match="cannot be read: No such file"):
        stamp(str(file))


def test_stamps_of_different_kinds_compare_by_size():
    assert Stamp(5, "mtime:1").fits(Stamp(5, "etag:a"))
    assert Stamp(5, "mtime:1").fits(Stamp(5, "mtime:1"))
    assert not Stamp(5, "mtime:1").fits(Stamp(5, "mtime:2"))
    assert not Stamp(5, "mtime:1").fits(Stamp(6, "etag:a"))


def test_a_protocol_that_is_none_or_not_installed():
    with pytest.raises(CBAMError, match="'nonsense://x' cannot be read"):
        storage.filesystem("nonsense://x")
    with pytest.raises(MissingExtra, match=r"needs the package 'gcsfs'.*\[remote\]"):
        storage.filesystem("gs://bucket/x")


class TestOverHTTP:
    @pytest.fixture(autouse=True)
    def _needs(self, monkeypatch):
        pytest.importorskip("aiohttp")
        monkeypatch.setattr(storage, "_FIRST_WAIT_S", 0.01)

    def test_one_request_for_each_run(self, file):
        with serving(file.parent) as (url, asked):
            files = Storage([f"{url}/a.bin"])
            assert files.read([(0, 400_000, 400_010), (0, 3, 7), (0, 0, 2)]) == [
                CONTENT[400_000:400_010],
                CONTENT[3:7],
                CONTENT[0:2],
            ]
            assert sorted(part for _, part in asked) == ["bytes=0-6", "bytes=400000-400009"]
            assert stamp(f"{url}/a.bin").size == len(CONTENT)

    def test_a_failure_is_tried_again_and_gives_up_at_last(self, file):
        with serving(file.parent, failures=2) as (url, _):
            assert Storage([f"{url}/a.bin"]).read([(0, 3, 7)]) == [CONTENT[3:7]]
        with serving(file.parent, failures=99) as (url, asked):
            with pytest.raises(CBAMError, match=r"could not be read in 4 tries: 503"):
                Storage([f"{url}/a.bin"]).read([(0, 3, 7)])
            assert len(asked) == 4

    def test_silence_is_a_failure_too(self, file, monkeypatch):
        monkeypatch.setattr(storage, "_SILENCE_S", 0.2)
        with (
            serving(file.parent, silent=True) as (url, _),
            pytest.raises(CBAMError, match=r"in 4 tries: no answer within 0\.2 seconds"),
        ):
            Storage([f"{url}/a.bin"]).read([(0, 3, 7)])

    def test_a_server_that_fails_does_not_make_a_file_look_absent(self, file):
        """`read_all` gives None for what is not there; a class list must not be left out for a hiccup."""
        with serving(file.parent, failures=99, heads=True) as (url, _):
            with pytest.raises(CBAMError, match="in 4 tries: 503"):
                storage.read_all(f"{url}/a.bin", 10**9)
            assert storage.read_all(f"{url}/b.bin", 10**9) is None

    def test_a_server_without_ranges_is_told(self, file):
        with (
            serving(file.parent, ranges=False) as (url, _),
            pytest.raises(CBAMError, match="cannot read parts"),
        ):
            Storage([f"{url}/a.bin"]).read([(0, 3, 7)])

    def test_a_file_that_is_not_there(self, file):
        with serving(file.parent) as (url, _), pytest.raises(CBAMError, match="cannot be read"):
            stamp(f"{url}/b.bin")

    def test_forked_workers_read_for_themselves(self, file):
        with serving(file.parent) as (url, _):
            files = Storage([f"{url}/a.bin"])
            files.read([(0, 0, 1)])
            for _ in range(2):
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.write(writer, files.read([(0, 65, 70)])[0])
                    os._exit(0)
                os.waitpid(pid, 0)
                assert os.read(reader, 10) == CONTENT[65:70]
