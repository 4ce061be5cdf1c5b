from itertools import chain

import pytest

from cbam.data import EpochBatches, load_data, make_loader
from cbam.errors import CBAMError


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit_train=50, limit_val=10).train


def batches(digits, size=12, **settings):
    return EpochBatches(digits, size, **{"seed": 3, "shuffle": True, "drop_last": False, **settings})


def test_without_shuffling_the_order_is_the_file_order(digits):
    order = batches(digits, shuffle=False)
    order.set_position(2)
    assert list(chain(*order)) == [(2, index) for index in range(50)]


def test_an_iterator_keeps_the_epoch_it_was_made_for(digits):
    order = batches(digits)
    first = iter(order)
    order.set_position(1)
    assert next(first)[0][0] == 0


def test_the_processes_share_each_step_and_nothing_else(digits):
    alone = list(batches(digits))
    for world in (2, 3, 5):
        shares = [list(batches(digits, rank=rank, world=world)) for rank in range(world)]
        for step, whole in enumerate(alone):
            assert sorted(chain(*(share[step] for share in shares if step < len(share)))) == sorted(whole)


def test_going_on_in_the_middle_gives_the_rest_of_the_epoch(digits):
    straight = list(batches(digits))
    rest = batches(digits)
    rest.set_position(0, step=3)
    assert list(rest) == straight[3:]
    assert len(rest) == len(straight) == 5


def test_an_epoch_that_drops_its_last_step_gives_equal_shares(digits):
    shares = [list(batches(digits, drop_last=True, rank=rank, world=4)) for rank in range(4)]
    assert {len(batch) for share in shares for batch in share} == {3}
    assert len(set(chain(*chain(*shares)))) == 48


def test_more_processes_than_images_leave_some_without_a_batch(digits):
    shares = [list(batches(digits, rank=rank, world=30)) for rank in range(30)]
    assert sorted(chain(*chain(*shares))) == [(0, index) for index in range(50)]
    assert all(batch for share in shares for batch in share)


def test_the_loader_hands_out_the_share_of_its_process(digits):
    loader = make_loader(digits, batch_size=12, seed=3, shuffle=True, workers=2, rank=1, world=2)
    loader.batch_sampler.set_position(1, step=2)
    expected = batches(digits, rank=1, world=2)
    expected.set_position(1, step=2)
    assert [labels.tolist() for _, labels in loader] == [
        [digits.labels[index] for _, index in batch] for batch in expected
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "world": 2}, "given rank 2 of 2"),
        ({"drop_last": True, "world": 5}, "12 images cannot be shared evenly by 5"),
    ],
)
def test_what_cannot_be_shared_is_refused(digits, settings, message):
    with pytest.raises(CBAMError, match=message):
        batches(digits, **settings)
