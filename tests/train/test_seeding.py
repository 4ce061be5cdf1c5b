from __future__ import annotations

import random

import torch

from cbam.train.seeding import derive_seed, forked_rng, seed_everything


def test_places_and_seeds_do_not_collide():
    seeds = {
        derive_seed(seed, *place)
        for seed in range(50)
        for place in [("a",), ("b",), ("a", 1), ("a", 11), ("a", 1, 1)]
    }
    assert len(seeds) == 250


def test_the_same_in_every_process_and_version():
    """A run that is gone on with under a later version must not change its order of images."""
    assert derive_seed(3, "epoch", 7) == 3962759431088203213


def test_fits_into_torch():
    for seed in range(200):
        torch.Generator().manual_seed(derive_seed(seed, "x"))


def test_seed_everything_covers_python_and_torch():
    seed_everything(5)
    first = (random.random(), torch.rand(2).tolist())
    seed_everything(5)
    assert (random.random(), torch.rand(2).tolist()) == first
    seed_everything(6)
    assert (random.random(), torch.rand(2).tolist()) != first


def test_forked_rng_gives_the_generator_back_after_an_error():
    before = torch.get_rng_state()
    try:
        with forked_rng(1):
            torch.rand(1)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_rng_depends_on_its_seed():
    with forked_rng(1):
        first = torch.rand(4)
    with forked_rng(1):
        again = torch.rand(4)
    with forked_rng(2):
        other = torch.rand(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
