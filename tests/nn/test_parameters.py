"""Parameter groups for an optimizer."""

import pytest
import torch
from torch import nn

import cbam
from cbam import param_groups
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net


def network():
    model = Net(Block(8), Block(8))
    cbam.attach(model, input_size=8)
    return model


def test_every_parameter_is_in_one_group_with_its_rate_and_decay():
    model = network()
    groups = param_groups(model, 0.1, gate_lr=0.01, weight_decay=0.5, gate_weight_decay=0.25)
    of = {p: group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        gate = ".cbam." in name
        assert of[parameter]["lr"] == (0.01 if gate else 0.1), name
        decays = parameter.ndim > 1
        assert of[parameter]["weight_decay"] == ((0.25 if gate else 0.5) if decays else 0.0), name


def test_what_is_not_given_is_the_same_for_all():
    (only,) = param_groups(network(), 0.1, weight_decay=0.5, decay_norms=True)
    assert (only["lr"], only["weight_decay"]) == (0.1, 0.5)
    frozen = network().requires_grad_(False)
    frozen.fc.weight.requires_grad_(True)
    (only,) = param_groups(frozen, 0.1)
    assert only["params"] == [frozen.fc.weight]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_moves_each_at_its_own_rate(kind):
    model = network()
    optimizer = kind(param_groups(model, 0.1, gate_lr=0.0), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.rand(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    gates = [torch.equal(p, before[name]) for name, p in model.named_parameters() if ".cbam." in name]
    assert gates
    assert all(gates)
    assert not torch.equal(model.fc.weight, before["fc.weight"])


@pytest.mark.parametrize(("given", "message"), [
    ({"lr": -0.1}, r"lr expects a number of at least 0, got -0.1"),
    ({"lr": 0.1, "gate_lr": float("nan")}, "gate_lr expects"),
    ({"lr": 0.1, "gate_weight_decay": True}, "gate_weight_decay expects"),
])  # fmt: skip
def test_numbers_that_are_none(given, message):
    with pytest.raises(CBAMError, match=message):
        param_groups(network(), **given)


def test_nothing_to_train():
    with pytest.raises(CBAMError, match="Linear has no parameter that requires a gradient"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
