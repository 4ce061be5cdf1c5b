"""Rounds, order, warm-up, repeats and ratios, with a clock that we set."""

from __future__ import annotations

import gc
import itertools
from collections import Counter

import pytest
import torch

from cbam.evaluate.timing import (
    Candidate,
    Clock,
    WaitingClock,
    clock_of,
    interleave,
    order,
    quartiles,
    ratios,
)


class FakeClock(Clock):
    """Time passes only while a call works."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def seconds(self):
        return self.now

    def work(self, name, milliseconds):
        def call():
            self.now += milliseconds / 1000
            self.log.append(name)

        return Candidate(call)


def test_every_round_runs_each_candidate_once_in_the_stated_order():
    clock = FakeClock()
    candidates = {name: clock.work(name, 30.0) for name in "abc"}
    times = interleave(candidates, rounds=4, clock=clock)
    assert {name: len(samples) for name, samples in times.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = clock.log[-12:]
    assert [rounds[3 * k : 3 * k + 3] for k in range(4)] == [list(order("abc", k)) for k in range(4)]
    assert [order("abc", k)[0] for k in range(6)] == ["a", "a", "c", "c", "b", "b"]


def test_nobody_always_follows_the_same_one():
    before = {name: Counter() for name in "abcd"}
    for number in range(8):
        turn = order("abcd", number)
        for first, second in itertools.pairwise(turn):
            before[second][first] += 1
    assert all(len(counts) >= 2 for counts in before.values()), before


def test_times_are_those_of_one_call():
    clock = FakeClock()
    times = interleave(
        {"slow": clock.work("slow", 40.0), "fast": clock.work("fast", 0.1)}, rounds=3, clock=clock
    )
    assert times["slow"] == pytest.approx([40.0] * 3)
    assert times["fast"] == pytest.approx([0.1] * 3)


def test_short_calls_are_repeated_and_long_ones_are_not():
    clock = FakeClock()
    interleave({"slow": clock.work("slow", 40.0), "fast": clock.work("fast", 0.1)}, rounds=3, clock=clock)
    counts = Counter(clock.log)
    assert counts["slow"] == 2 + 3, "two calls to warm up, then one in each round"
    assert 3 * 20 <= counts["fast"] <= 3 * 22 + 10, "a sample is 2 ms long, an untimed call before it"


def test_the_budget_ends_a_measurement_but_not_before_five_rounds():
    clock = FakeClock()
    times = interleave({"a": clock.work("a", 1000.0)}, rounds=50, seconds=0.5, clock=clock)
    assert len(times["a"]) == 5
    times = interleave({"a": clock.work("a", 1000.0)}, rounds=50, seconds=10.5, clock=clock)
    assert len(times["a"]) == 11
    times = interleave({"a": clock.work("a", 1000.0)}, rounds=3, seconds=0.5, clock=clock)
    assert len(times["a"]) == 3


def test_inference_mode_unless_autograd_is_asked_for_and_preparations_outside_the_clock():
    seen, prepared, clock = {}, [], FakeClock()

    def look(name):
        seen[name] = torch.is_inference_mode_enabled()
        clock.now += 0.03

    def prepare():
        prepared.append(clock.now)
        clock.now += 5.0

    times = interleave(
        {
            "forward": Candidate(lambda: look("forward"), prepare=prepare),
            "both": Candidate(lambda: look("both"), grad=True),
        },
        rounds=2,
        clock=clock,
    )
    assert seen == {"forward": True, "both": False}
    assert times["forward"] == pytest.approx([30.0, 30.0])
    assert len(prepared) == 2 + 2, "before every turn, in the warm-up too"


def test_the_garbage_collector_is_back_after_an_error():
    calls = []

    def fails():
        calls.append(gc.isenabled())
        if len(calls) > 8:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"a": Candidate(fails)}, rounds=5)
    assert calls[0] is True
    assert calls[-1] is False
    assert gc.isenabled()


def test_ratios_are_taken_round_by_round():
    mine, theirs = [10.0, 40.0, 20.0], [1.0, 4.0, 2.0]
    assert ratios(mine, theirs) == [10.0, 10.0, 10.0], "a slow round is slow for both"
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.0, 2.5)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_two_candidates_take_turns_to_be_first():
    assert [order("ab", k) for k in range(4)] == [["a", "b"], ["b", "a"]] * 2


def test_single_calls_follow_their_preparation_and_a_call_may_contain_several():
    clock, log = FakeClock(), []
    fast = clock.work("fast", 0.1)
    candidate = Candidate(fast.call, prepare=lambda: log.append(len(clock.log)), single=True, contains=4)
    times = interleave({"fast": candidate}, rounds=3, clock=clock)
    assert times["fast"] == pytest.approx([0.1 / 4] * 3)
    assert log == list(range(6)), "one call after each preparation: three to warm up, three samples"
    assert interleave({}, rounds=3) == {}


def test_the_clock_of_a_device_waits_for_it(monkeypatch):
    assert type(clock_of(torch.device("cpu"))) is Clock
    order_of_events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order_of_events.append(device.type))
    clock = clock_of(torch.device("meta"))
    assert isinstance(clock, WaitingClock)
    assert clock.time(lambda: order_of_events.append("call")) > 0
    assert order_of_events == ["meta", "call", "meta"]
