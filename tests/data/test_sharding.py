"""Each sample exactly once an epoch: on up to 4,096 ranks x 8 workers, and after going on with another world size.

What is simulated is what runs: `EpochBatches` says which positions a rank takes at a step, the data set's `order` says
which samples stand there, and torch's `DataLoader` hands whole batches to its workers in turn (checked on a real one).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from cbam.data import EpochBatches, load_data, make_loader
from cbam.data.hashing import permutation
from cbam.data.shards.order import WindowedOrder
from tests.data.shards.tars import shard_folder

IMAGENET = 1_281_167
MOST_RANKS, WORKERS = 4096, 8


class Plain:
    """As many samples as asked, in the order that `EpochIndexDataset` gives."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def order(self, seed, epoch, shuffle):
        return permutation(self.size, seed, epoch) if shuffle else np.arange(self.size)


class Sharded(Plain):
    """The same in shards of 1,000, windows of 64."""

    def order(self, seed, epoch, shuffle):
        counts = np.full(-(-self.size // 1000), 1000)
        counts[-1] = self.size - 1000 * (len(counts) - 1)
        return WindowedOrder(counts, seed, epoch)


def plan(dataset, rank, world, batch_size, *, drop_last=True):
    return EpochBatches(
        dataset, batch_size, seed=5, shuffle=drop_last, drop_last=drop_last, rank=rank, world=world
    )


def taken(dataset, world, batch_size, first=0, last=None, *, drop_last=True):
    """How often each position of an epoch is taken, from step `first` up to `last`, by all workers of all ranks.

    Also returns the share of each (rank, worker): a loader hands its batch number b to worker b modulo workers.
    """
    positions = np.zeros(len(dataset), dtype=np.int8)
    shares = np.zeros((world, WORKERS), dtype=np.int64)
    for rank in range(world):
        batches = plan(dataset, rank, world, batch_size, drop_last=drop_last)
        for number, step in enumerate(range(first, len(batches) if last is None else last)):
            part = batches.positions(step)
            positions[part] += 1
            shares[rank, number % WORKERS] += len(range(*part.indices(len(dataset))))
    return positions, shares


@pytest.mark.parametrize("kind", [Plain, Sharded])
@pytest.mark.parametrize("world", [1, 3, 64, MOST_RANKS])
def test_training_takes_each_sample_once(kind, world):
    dataset = kind(IMAGENET)
    batch_size = max(256 // world, 1) * world if world < 4096 else 2 * world
    positions, shares = taken(dataset, world, batch_size)
    whole = IMAGENET // batch_size * batch_size
    assert (positions[:whole] == 1).all()
    assert (positions[whole:] == 0).all()  # the last, smaller step is left out, other samples each epoch
    assert shares.sum() == whole
    assert (shares.sum(axis=1) == whole // world).all()  # no rank waits for another
    # Positions are samples: the order is a permutation.
    assert (np.bincount(np.asarray(dataset.order(5, 3, True)), minlength=IMAGENET) == 1).all()


@pytest.mark.parametrize("world", [1, 2, 7, 1000, MOST_RANKS])
@pytest.mark.parametrize("size", [50_000, 1, 49_999, 4097])
def test_evaluation_takes_each_sample_once_and_pads_nothing(world, size):
    positions, shares = taken(Plain(size), world, 8192, drop_last=False)
    assert (positions == 1).all()
    assert shares.sum() == size


@pytest.mark.parametrize(
    "worlds",
    [(4096, 1024, 4096), (1, 4096), (4096, 1), (512, 96, 2048)],
    ids=lambda worlds: "-".join(map(str, worlds)),
)
def test_going_on_with_another_world_size_takes_the_rest_once(worlds):
    dataset = Sharded(IMAGENET)
    batch_size = 12_288  # a multiple of all of them
    cuts = np.linspace(0, IMAGENET // batch_size, len(worlds) + 1).astype(int)
    positions = np.zeros(IMAGENET, dtype=np.int8)
    for world, first, last in zip(worlds, cuts[:-1], cuts[1:], strict=True):
        positions += taken(dataset, world, batch_size, first, last)[0]
    assert (positions[: cuts[-1] * batch_size] == 1).all()
    assert positions[cuts[-1] * batch_size :].sum() == 0


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 5), st.booleans(), st.data())
def test_any_sizes(size, world, per_rank, drop_last, data):
    """The addresses themselves, through the iterators that a loader runs."""
    batch_size = world * per_rank
    steps = len(plan(Plain(size), 0, world, batch_size, drop_last=drop_last))
    cut = data.draw(st.integers(0, steps))
    other = data.draw(st.sampled_from([w for w in range(1, 13) if batch_size % w == 0]))
    seen = []
    for count, first, last in ((world, 0, cut), (other, cut, steps)):
        for rank in range(count):
            batches = plan(Plain(size), rank, count, batch_size, drop_last=drop_last)
            batches.set_position(4, first)
            taken_here = [address for batch in list(batches) for address in batch]
            ends = sum(len(range(*batches.positions(step).indices(size))) for step in range(first, last))
            seen += taken_here[:ends]
    expected = steps * batch_size if drop_last else size
    assert len(seen) == len(set(seen)) == expected
    assert {epoch for epoch, _ in seen} <= {4}


@given(st.sampled_from([Plain, Sharded]), st.integers(16, 5000), st.sampled_from([1, 2, 4, 8]))
def test_a_step_has_the_same_samples_for_any_world_size(kind, size, world):
    dataset = kind(size)
    order = np.asarray(dataset.order(5, 0, True))
    step = size // 16 // 2
    parts = [order[plan(dataset, rank, world, 16).positions(step)] for rank in range(world)]
    assert np.stack(parts, axis=1).ravel().tolist() == order[step * 16 : step * 16 + 16].tolist()


class Telling:
    """A real data set whose items say which worker made them."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.labels, self.classes = dataset.labels, dataset.classes

    def __len__(self):
        return len(self.dataset)

    def with_seed(self, seed):
        return self

    def order(self, seed, epoch, shuffle):
        return self.dataset.order(seed, epoch, shuffle)

    def __getitems__(self, addresses):
        worker = get_worker_info().id
        return [(worker, epoch, index) for epoch, index in addresses]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_torch_hands_whole_batches_to_its_workers_in_turn(tmp_path):
    dataset = Telling(load_data(f"shards:{shard_folder(tmp_path, train=5, each=7)}").train)
    seen = []
    for rank in range(2):
        loader = make_loader(dataset, batch_size=4, seed=1, shuffle=True, workers=3, rank=rank, world=2)
        for epoch, first in ((0, 0), (1, 4)):  # the second one goes on in the middle; workers live on
            loader.batch_sampler.set_position(epoch, first)
            for number, (workers, epochs, indices) in enumerate(loader):
                assert workers.tolist() == [number % 3] * len(indices)
                seen += list(zip(epochs.tolist(), indices.tolist(), strict=True))
    whole = np.asarray(dataset.order(1, 1, True)).tolist()
    assert sorted(seen) == sorted([(0, k) for k in range(35)] + [(1, k) for k in whole[16:]])
