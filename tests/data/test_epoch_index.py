from __future__ import annotations

import pickle
from itertools import chain

import pytest
import torch

from cbam.data import load_data, make_loader
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").train


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return load_data(photo_folder(tmp_path_factory.mktemp("photos"), 8), image_size=32).train


@pytest.fixture(params=["digits", "photos"])
def dataset(request):
    return request.getfixturevalue(request.param)


def epochs_of(loader, epochs=(0, 1)):
    batches = []
    for epoch in epochs:
        loader.batch_sampler.set_position(epoch)
        batches.append([(images.clone(), labels) for images, labels in loader])
    return batches


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(ours, theirs, strict=True)
    )


def test_workers_change_no_bit(dataset):
    settings = {"batch_size": 7, "seed": 3, "shuffle": True}
    alone = epochs_of(make_loader(dataset, **settings))
    helped = epochs_of(make_loader(dataset, **settings, workers=2))
    assert all(same(ours, theirs) for ours, theirs in zip(alone, helped, strict=True))
    assert not same(alone[0], alone[1])


def test_an_item_does_not_depend_on_its_batch(dataset):
    addresses = [(2, 5), (2, 0), (7, 5), (2, 5)]
    together = dataset.__getitems__(addresses)
    for address, (image, label) in zip(addresses, together, strict=True):
        assert torch.equal(dataset[address][0], image)
        assert dataset[address][1] == label
    assert torch.equal(together[0][0], together[3][0])
    assert not torch.equal(together[0][0], together[2][0])


def test_a_later_epoch_needs_no_earlier_one(dataset):
    """So a run that was killed goes on with the very images it would have seen."""
    settings = {"batch_size": 7, "seed": 3, "shuffle": True}
    straight = epochs_of(make_loader(dataset, **settings), epochs=(0, 1, 2))
    resumed = epochs_of(make_loader(dataset, **settings), epochs=(2,))
    assert same(straight[2], resumed[0])


def test_the_seed_changes_order_and_augmentation(dataset):
    orders = [
        list(make_loader(dataset, batch_size=7, seed=seed, shuffle=True).batch_sampler) for seed in (0, 1)
    ]
    assert orders[0] != orders[1]
    unshuffled = [make_loader(dataset, batch_size=7, seed=seed, shuffle=False) for seed in (0, 1)]
    (images, labels), (others, same_labels) = (next(iter(loader)) for loader in unshuffled)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, others)
    assert dataset.seed == 0


def test_the_global_generator_is_left_alone(dataset):
    loader = make_loader(dataset, batch_size=7, seed=3, shuffle=True)
    before = torch.get_rng_state()
    epochs_of(loader)
    assert torch.equal(before, torch.get_rng_state())
    first = epochs_of(loader)
    torch.manual_seed(99)
    assert same(first[0], epochs_of(loader)[0])


def test_a_pickled_set_is_the_same(dataset):
    """Workers that are not forked get the set this way."""
    view = dataset.with_seed(4)
    assert torch.equal(pickle.loads(pickle.dumps(view))[1, 2][0], view[1, 2][0])


def test_every_image_comes_once_an_epoch(digits):
    loader = make_loader(digits, batch_size=100, seed=0, shuffle=True)
    loader.batch_sampler.set_position(4)
    assert sorted(chain(*loader.batch_sampler)) == [(4, index) for index in range(len(digits))]
    assert sum(len(labels) for _, labels in loader) == len(digits)
    assert (
        len(make_loader(digits, batch_size=100, seed=0, shuffle=True, drop_last=True)) == len(digits) // 100
    )


@pytest.mark.parametrize("address", [5, (1, 2, 3), "ab"])
def test_a_plain_index_is_refused(digits, address):
    with pytest.raises(CBAMError, match="indexed by \\(epoch, index\\)"):
        digits[address]


@pytest.mark.parametrize("index", [-1, 10**6])
def test_an_index_outside_is_refused(dataset, index):
    with pytest.raises(IndexError, match="outside"):
        dataset[0, index]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "workers": -1}, "workers at least 0"),
        ({"batch_size": 10**6, "drop_last": True}, "Use a smaller batch size"),
    ],
)
def test_a_loader_that_cannot_work_is_refused(digits, settings, message):
    with pytest.raises(CBAMError, match=message):
        make_loader(digits, seed=0, shuffle=True, **settings)


def test_an_empty_set_is_refused(digits):
    with pytest.raises(CBAMError, match="0 images give no batch"):
        make_loader(digits.subset([]), batch_size=4, seed=0, shuffle=False)
