from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cbam.data import EpochBatches, load_data
from cbam.data.balanced import REPEAT, balanced_order, class_weights

LABELS = [0] * 30 + [1] * 6 + [3] * 4


def test_every_class_comes_equally_often():
    indices, repeats = balanced_order(LABELS, seed=0, epoch=0)
    counts = Counter(LABELS[index] for index in indices)
    assert sorted(counts.values()) == [13, 13, 14]
    assert len(set(zip(indices.tolist(), repeats.tolist(), strict=True))) == len(LABELS), (
        "a repeat is counted"
    )
    often = Counter(indices.tolist())
    for label in (1, 3):
        of_class = [often[index] for index, name in enumerate(LABELS) if name == label]
        assert max(of_class) - min(of_class) <= 1, (
            "no image of a small class comes more often than the others"
        )
    assert max(often[index] for index in range(30)) == 1


def test_a_large_class_is_seen_whole_in_time():
    seen = {int(index) for epoch in range(12) for index in balanced_order(LABELS, 0, epoch)[0]}
    assert seen == set(range(40))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_it_is_a_function_of_seed_and_epoch(labels, seed, epoch):
    first, again = (balanced_order(labels, seed, epoch) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first[0]) == len(labels)
    counts = Counter(labels[index] for index in first[0])
    assert max(counts.values()) - min(counts.get(label, 0) for label in set(labels)) <= 1
    assert int(first[1].max()) == max(Counter(first[0].tolist()).values()) - 1


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_steps_of_one(world):
    data = load_data("digits", limit_train=40).train

    def batches(**how):
        found = EpochBatches(data, 8, seed=1, shuffle=True, drop_last=True, balanced_by=LABELS, **how)
        found.set_position(epoch=3, step=2)
        return list(found)

    shares = [batches(rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(batches()):
        parts = [share[step] for share in shares]
        assert sorted(at for part in parts for at in part) == sorted(whole)
        assert {len(part) for part in parts} == {8 // world}


def test_a_repeated_image_is_augmented_differently():
    data = load_data("digits", limit_train=40)
    batches = EpochBatches(data.train, 40, seed=0, shuffle=True, drop_last=False, balanced_by=LABELS)
    at = sorted((place for batch in batches for place in batch), key=lambda place: place[::-1])
    twice = [place for place in at if place[1] == at[-1][1]]
    assert [epoch for epoch, _ in twice] == [REPEAT * time for time in range(len(twice))]
    assert len(twice) > 1
    images = {data.train.__getitems__([place])[0][0].numpy().tobytes() for place in twice}
    assert len(images) > 1


def test_weights_make_up_for_the_counts():
    weights = class_weights([30, 6, 0, 4])
    assert weights[2] == 1
    assert np.isclose(30 * weights[0], 6 * weights[1])
    assert np.isclose(
        sum(
            count * weight
            for count, weight in zip([30, 6, 4], [weights[0], weights[1], weights[3]], strict=True)
        ),
        40,
    )
    reference = torch.tensor([40 / (3 * count) for count in (30, 6, 4)])
    assert torch.allclose(torch.tensor([weights[0], weights[1], weights[3]]), reference), (
        "as scikit-learn has them"
    )
