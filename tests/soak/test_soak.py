"""The long runs of `make soak`, short; and that each of them can fail."""

import pytest
import torch

from tests.soak import soak


def test_nothing_grows():
    done, early, late = soak.cycles(40, 60)
    assert done == 40
    assert soak.judge(early, late, done) == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda model: model.register_forward_hook(lambda *_: None), "hooks"),
        (
            lambda model: vars(model).setdefault("_kept", []).append([torch.empty(0) for _ in range(50)]),
            "objects",
        ),
        (lambda model: vars(model).setdefault("_kept", []).extend(map(bytearray, range(50))), "blocks"),
    ],
    ids=["hooks", "objects", "memory"],
)
def test_what_grows_is_found(harm, message, capsys):
    done, early, late = soak.cycles(20, 60, harm)
    assert message in " ".join(soak.judge(early, late, done))


def test_threads_give_what_one_gives():
    assert soak.threads(100, 4) == 0


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_data_workers(how):
    assert soak.workers(how, 16)
