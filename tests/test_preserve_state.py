"""The context manager that every probe of a user's model runs in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam.preserve_state import preserve_state, probe_input


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.evals = 0

    def train(self, mode=True):
        self.evals += 1
        return super().train(mode)


def _meddle(net):
    with preserve_state(net):
        assert not any(module.training for module in net.modules())
        net.norm.running_var += 1
        net.norm.running_mean = torch.zeros(3)
        torch.rand(3)
        raise RuntimeError("inside")


def test_flags_buffers_and_random_numbers_come_back_after_an_exception():
    net = _Net()
    net.norm.eval()
    net.norm.running_mean.fill_(float("nan"))
    mean, state = net.norm.running_mean, torch.get_rng_state()
    calls = net.evals
    with pytest.raises(RuntimeError, match="inside"):
        _meddle(net)
    assert net.training
    assert not net.norm.training
    assert net.norm.running_mean is mean
    assert mean.isnan().all()
    assert torch.equal(net.norm.running_var, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.evals == calls, "a user's train() is not called"


def test_buffers_that_did_not_change_are_not_written():
    net = nn.BatchNorm2d(3)
    version = net.running_mean._version
    with preserve_state(net):
        net(torch.rand(2, 3, 4, 4))
    assert net.running_mean._version == version


def test_the_probe_has_the_parameters_type():
    assert probe_input(nn.Conv2d(1, 1, 1).bfloat16(), (2, 1, 3, 3)).dtype == torch.bfloat16
    assert probe_input(nn.ReLU(), (2, 1, 3, 3)).dtype == torch.float32
