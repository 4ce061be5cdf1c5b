"""Bytes saved and peak, against sums that can be done by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from cbam.evaluate import cost
from cbam.evaluate.memory import peak_bytes, saved_bytes


def test_a_storage_counts_once_and_weights_do_not():
    x, w = torch.ones(10, 10, requires_grad=True), torch.ones(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x * w, [w]) == 400
    assert saved_bytes(lambda: x * w, []) == 800
    assert saved_bytes(lambda: (x * x.view(100).view(10, 10)) * w, [w]) == 800, "x once, its product once"
    assert saved_bytes(lambda: x + w, []) == 0


def test_it_agrees_with_the_cost_command():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    owned = [*net.parameters(), *net.buffers()]
    assert saved_bytes(lambda: net(torch.zeros(1, 3, 16, 16)), owned) == cost(net, (3, 16, 16)).bytes_saved


def test_the_peak_is_the_most_that_lived_at_once():
    x = torch.ones(1000)

    def step():
        first = x.exp()
        second = first.exp()
        del first
        third = second.exp()
        return third.exp()

    assert peak_bytes(step) == 3 * 4000


def test_the_peak_of_a_training_step():
    x, g = torch.ones(100, 100, requires_grad=True), torch.ones(100, 100)

    def step():
        x.exp().backward(g)
        x.grad = None

    step()
    assert peak_bytes(step) == 2 * 40000, "the result of exp, which is saved, and the gradient"


@pytest.mark.parametrize("before", [None, "3"])
def test_the_environment_is_left_as_it_was_and_nothing_is_printed(before):
    """In a process of its own: the profiler reads the level once, when it is first used."""
    code = (
        "import os, torch\nfrom cbam.evaluate.memory import peak_bytes\npeak_bytes(lambda: torch.ones(3))\n"
        f"assert os.environ.get('KINETO_LOG_LEVEL') == {before!r}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    environment |= {"KINETO_LOG_LEVEL": before} if before else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
