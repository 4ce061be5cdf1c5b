from __future__ import annotations

import pytest
import torch

from cbam.train.mixing import Mixing

IMAGES, LABELS = torch.rand(8, 3, 16, 16), torch.arange(8) % 4


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_only_the_seed_decides(options):
    before = torch.get_rng_state()
    first, shares = Mixing(4, **options)(IMAGES, LABELS, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again, _ = Mixing(4, **options)(IMAGES, LABELS, seed=1)
    other, _ = Mixing(4, **options)(IMAGES, LABELS, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert not torch.equal(first, IMAGES)


def test_both_ways_come():
    both = Mixing(4, mixup=0.5, cutmix=1.0)
    pasted = [
        bool(((both(IMAGES, LABELS, seed=seed)[0] - IMAGES).abs().amax(1) == 0).any()) for seed in range(20)
    ]
    assert {True, False} == set(pasted)


def test_off_hands_the_batch_on():
    images, labels = Mixing(4)(IMAGES, LABELS, seed=1)
    assert images is IMAGES
    assert labels is LABELS
