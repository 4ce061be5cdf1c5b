"""Modules that run in evaluation mode only."""

import pytest
import torch
from torch import nn

import cbam
from cbam.attach.graph.probe import run_probe
from tests.attach.networks import Block, Net


class Decodes(Net):
    """In evaluation mode the map goes through one more convolution, by code in a method of its own."""

    def __init__(self, fails=False):
        super().__init__(Block(8))
        self.decode = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fails = fails

    def forward(self, x):
        x = self.blocks(self.stem(x))
        if self.training and self.fails:
            raise ValueError("targets are missing")
        return self.fc(self.finished(x).mean((2, 3)))

    def finished(self, x):
        return x if self.training else self.decode(x)


def test_no_kind_goes_there():
    plan = cbam.plan(Decodes(), sites="conv", input_size=8, reduction_ratio=2)
    assert [site.name for site in plan.sites] == ["stem", "blocks.0.conv1", "blocks.0.bn2"]
    assert plan.notes == ("left out, as it runs in eval mode only: decode.2",)


def test_a_site_by_name_is_warned_of():
    plan = cbam.plan(Decodes(), sites=["decode.2", "stem"], input_size=8, reduction_ratio=2)
    assert plan.notes == ("decode.2 runs in eval mode only: its gates get no gradient",)


def test_a_detector_that_asks_for_targets_says_nothing():
    assert len(cbam.plan(Decodes(fails=True), sites="conv", input_size=8).sites) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(fails):
    model = Decodes(fails).train()
    model.decode.eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    run_probe(model, (torch.rand(1, 3, 8, 8),))
    torch.set_rng_state(random)
    run_probe(model, (torch.zeros(1, 3, 8, 8),))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_does_not_look_at_its_mode_runs_once():
    runs = []
    model = Net(Block(8))
    model.stem.register_forward_hook(lambda *_: runs.append(1))
    run_probe(model, (torch.rand(1, 3, 8, 8),))
    assert len(runs) == 1


def test_what_is_passed_over_by_chance_is_no_such_module():
    class Dropped(Net):
        runs = 0

        def forward(self, x):
            x = self.stem(x)
            self.runs += self.training
            return self.fc((x if self.training and self.runs == 1 else self.blocks(x)).mean((2, 3)))

    assert run_probe(Dropped(Block(8)), (torch.rand(1, 3, 8, 8),)).eval_only == frozenset()
