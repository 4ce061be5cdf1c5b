"""Interleaved timing: order, numbers, and the models left alone."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from cbam.errors import CBAMError
from cbam.evaluate import interleaved_latency

CALLS: list[tuple[str, int, bool, bool, bool]] = []


class _Sleeper(nn.Module):
    def __init__(self, name, milliseconds):
        super().__init__()
        self.name, self.seconds = name, milliseconds / 1000
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        time.sleep(self.seconds)
        last = x.is_contiguous(memory_format=torch.channels_last)
        CALLS.append((self.name, len(x), self.training, torch.is_grad_enabled(), last))
        return self.norm(self.conv(x))


def test_numbers_order_and_state():
    CALLS.clear()
    models = {"a": _Sleeper("a", 2), "b": _Sleeper("b", 6)}
    weights = {name: model.conv.weight.stride() for name, model in models.items()}
    random = torch.get_rng_state()
    found = interleaved_latency(models, (3, 9, 8), batch_sizes=(1, 4), rounds=4, channels_last=True)
    assert list(found) == ["a", "b"]
    assert list(found["a"]) == [1, 4]
    for name, floor in (("a", 2), ("b", 6)):
        for latency in found[name].values():
            assert floor <= latency.low_ms <= latency.median_ms <= latency.high_ms
    timed = "".join(name for name, size, *_ in CALLS if size == 1)[-8:]
    assert timed == "abbaabba", "every round starts with another model"
    assert {call[2:] for call in CALLS} == {(False, False, True)}, "eval mode, no autograd, channels last"
    for name, model in models.items():
        assert model.training
        assert model.conv.weight.stride() == weights[name]
        assert int(model.norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_it_prints_as_a_sentence():
    found = interleaved_latency({"a": nn.ReLU()}, (1, 2, 2), batch_sizes=(1,), rounds=2)["a"][1]
    assert str(found) == f"{found.median_ms:.2f} ms ({found.low_ms:.2f} to {found.high_ms:.2f})"


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "given 0 models"),
        ({"a": nn.ReLU()}, {"batch_sizes": ()}, r"batch_sizes=\(\)"),
        ({"a": nn.ReLU()}, {"batch_sizes": (0,)}, r"batch_sizes=\(0,\)"),
        ({"a": nn.ReLU()}, {"rounds": 1}, "rounds=1"),
    ],
)
def test_nothing_to_time_is_an_error(models, options, message):
    with pytest.raises(CBAMError, match=message):
        interleaved_latency(models, (1, 2, 2), **options)


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv1d, (2, 9)), (nn.Conv3d, (2, 3, 4, 5))])
def test_signals_and_volumes(kind, size):
    models = {"a": kind(2, 4, 3, padding=1)}
    assert interleaved_latency(models, size, batch_sizes=(1,), rounds=2)["a"][1].median_ms > 0
    if len(size) == 4:
        assert interleaved_latency(models, size, batch_sizes=(1,), rounds=2, channels_last=True)
    else:
        with pytest.raises(CBAMError, match=r"input \(2, 9\) have no channels-last format"):
            interleaved_latency(models, size, batch_sizes=(1,), rounds=2, channels_last=True)
