from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbam.data.shards.order import WindowedOrder

counts_of_some = st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(sum)


@given(counts_of_some, st.integers(1, 25), st.integers(0, 3), st.integers(0, 3))
def test_every_sample_once(counts, window, seed, epoch):
    order = WindowedOrder(counts, seed, epoch, window)
    assert sorted(order[:].tolist()) == list(range(sum(counts))) == sorted(np.asarray(order).tolist())
    assert len(order) == sum(counts)


@given(counts_of_some, st.integers(1, 25), st.data())
def test_any_slice_is_that_of_the_whole(counts, window, data):
    order = WindowedOrder(counts, 1, 2, window)
    whole = order[:]
    bound = st.none() | st.integers(-200, 200)
    step = data.draw(st.none() | st.integers(-30, 30).filter(bool))
    part = slice(data.draw(bound), data.draw(bound), step)
    assert order[part].tolist() == whole[part].tolist()
    position = data.draw(st.integers(0, sum(counts) - 1))
    assert order[position] == whole[position] == order[position - sum(counts)]


def test_a_window_keeps_its_shards_together():
    order = WindowedOrder([100] * 12, seed=0, epoch=0, window=3)
    shards = order[:].reshape(4, 300) // 100
    assert [len(set(part.tolist())) for part in shards] == [3] * 4
    assert (np.diff(shards[0][:30]) != 0).sum() > 10  # within it they are mixed


def test_seed_and_epoch_change_shards_and_samples():
    orders = [
        WindowedOrder([10] * 8, seed, epoch, 2)[:].tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    # Pinned: another order would make a resumed run another run.
    assert WindowedOrder([3, 2, 3], 0, 0, 2)[:].tolist() == [0, 1, 3, 4, 2, 6, 5, 7]


def test_one_position_too_many():
    with pytest.raises(IndexError):
        WindowedOrder([2, 2], 0, 0)[4]


def test_a_billion_samples_need_the_memory_of_a_window():
    tracemalloc.start()
    order = WindowedOrder(np.full(100_000, 10_000), 0, 0, window=8)
    first = order[:256]
    last = order[len(order) - 256 :]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(order) == 10**9
    assert len(set(first.tolist()) | set(last.tolist())) == 512
    assert peak < 16e6  # the whole order would be 8 GB


def test_a_window_takes_32_bytes_a_sample_to_make_and_8_to_keep():
    """The figures of docs/scale.md and docs/scale.py."""
    order = WindowedOrder([10_000] * 128, 0, 0, window=64)
    tracemalloc.start()
    first = order[:10]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first) == 10
    assert 8 <= kept / 640_000 < 9
    assert 20 < peak / 640_000 < 33
