from __future__ import annotations

import gc
import os
import pickle

import numpy as np
import pytest
import torch

from cbam.data import load_data, make_loader
from cbam.data.shards.order import WindowedOrder
from cbam.data.shards.storage import filesystem
from cbam.errors import CBAMError
from tests.data.shards.tars import jpeg, samples, serving, shard_folder, tar_bytes


@pytest.fixture
def folder(tmp_path):
    return shard_folder(tmp_path / "set")


@pytest.fixture
def train(folder):
    return load_data(f"shards:{folder}?window=2", image_size=16).train


def batches(dataset, workers):
    loader = make_loader(dataset, batch_size=5, seed=3, shuffle=True, workers=workers)
    loader.batch_sampler.set_position(1)
    return [(images.clone(), labels.tolist()) for images, labels in loader]


def test_every_sample_has_its_own_bytes_and_label(train):
    for index in range(12):
        ((name, content),) = train.contents([index])
        assert content == jpeg(index)
        assert name.endswith(f"train-{index // 4:03d}.tar: {index:04d}.jpg")
        assert train[0, index][1] == train.labels[index] == index % 2
        assert train.identifier(index) == f"train-{index // 4:03d}.tar:{index % 4}"


def test_items_do_not_depend_on_their_batch_nor_on_workers(train):
    addresses = [(2, 5), (2, 0), (7, 5), (2, 5)]
    for address, (image, label) in zip(addresses, train.__getitems__(addresses), strict=True):
        assert torch.equal(train[address][0], image)
        assert train[address][1] == label
    alone, helped = batches(train, 0), batches(train, 2)
    assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(alone, helped, strict=True))
    assert sum(len(labels) for _, labels in alone) == 12


def test_a_pickled_set_is_the_same_and_small(train):
    assert train.labels.sum() == 6
    content = pickle.dumps(train.with_seed(4))
    assert len(content) < 10_000
    assert torch.equal(pickle.loads(content)[1, 2][0], train.with_seed(4)[1, 2][0])


def test_a_subset_keeps_its_shards_together(train):
    part = train.subset([0, 1, 5, 6, 7, 11])
    assert [part.identifier(index) for index in (0, 2, 5)] == [
        "train-000.tar:0",
        "train-001.tar:1",
        "train-002.tar:3",
    ]
    order = part.order(0, 0, True)
    assert isinstance(order, WindowedOrder)
    assert sorted(order[:].tolist()) == list(range(6))
    assert part.subset([1, 5]).identifier(1) == "train-002.tar:3"
    assert part.labels.tolist() == [part[0, k][1] for k in range(6)] == [0, 1, 1, 0, 1, 1]
    backwards = train.subset([7, 3, 9]).order(0, 0, True)
    assert isinstance(backwards, np.ndarray)  # not in file order: nothing to keep together
    assert sorted(backwards.tolist()) == [0, 1, 2]
    assert train.order(0, 5, False).tolist() == list(range(12))


def test_a_shard_replaced_after_indexing_is_never_taken_for_the_old_one(folder, train):
    path = folder / "train-001.tar"
    size = path.stat().st_size
    content = tar_bytes(*samples([9, 8, 7, 6]))
    assert len(content) == size
    path.write_bytes(content)
    with pytest.raises(
        CBAMError, match=r"train-001\.tar is not the file that was indexed.*Delete .*start again"
    ):
        train.__getitems__([(0, index) for index in range(4, 8)])


def test_a_bad_image_is_named_by_shard_and_key(folder):
    path = folder / "train-001.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(jpeg(5), b"\0" * len(jpeg(5))))
    with pytest.raises(CBAMError, match=r"train-001\.tar: 0005\.jpg: not a readable image"):
        load_data(f"shards:{folder}").train[0, 5]


def test_over_http_it_is_the_same(folder, train):
    pytest.importorskip("aiohttp")
    with serving(folder) as (url, asked):
        pattern = f"shards:{url}/train-{{000..002}}.tar?val=val-000.tar&window=2"
        data = load_data(pattern, image_size=16)
        assert (len(data.train), len(data.val)) == (12, 4)
        ours, theirs = batches(data.train, 2), batches(train, 0)
        assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(ours, theirs, strict=True))
        asked.clear()
        data.train.__getitems__([(0, index) for index in range(12)])
        assert len(asked) == 3  # one request a shard: neighbours come together
        assert load_data(f"shards:{url}", image_size=16).identity == data.identity


def test_a_worker_leaves_the_connections_of_its_parent_alone(folder):
    """A forked process shares the parent's epoll: what it closes there, the parent never hears of again."""
    pytest.importorskip("aiohttp")
    with serving(folder) as (url, asked):
        data = load_data(f"shards:{url}/train-{{000..002}}.tar?val=val-000.tar&window=2", image_size=16)
        places = [(0, index) for index in range(12)]
        data.train.__getitems__(places)
        worker = os.fork()
        if worker == 0:
            filesystem(url)
            gc.collect()
            os._exit(0)
        assert os.waitpid(worker, 0) == (worker, 0)
        asked.clear()
        data.train.__getitems__(places)
        assert len(asked) == 3


def test_any_file_system_of_fsspec_will_do(folder, train):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    try:
        data = load_data("shards:memory://bucket?window=2", image_size=16)
        ours, theirs = batches(data.train, 0), batches(train, 0)
        assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(ours, theirs, strict=True))
    finally:
        memory.rm("/bucket", recursive=True)
