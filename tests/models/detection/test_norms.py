"""The norms of a detector's gates: the fused operator takes them, and gives what they give in plain torch."""

import copy

import pytest
import torch
from torch import nn

from cbam import attach, set_backend
from cbam.models.detection.norms import accept_single_values, freeze_gate_norms
from cbam.nn.route import route
from tests.ops.library import needs_operator


def attended():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    attach(model, "cbam", "0", preset="official", init="paper", input_size=8)
    norm = model[0].cbam.spatial_attention.norm
    norm.running_mean.fill_(0.2)
    norm.running_var.fill_(3.0)
    nn.init.constant_(norm.weight, 0.7)
    return model


def step(model, x, backend):
    """What a training step gives: the map, the gradients and the statistics."""
    with set_backend(backend):
        y = model.train()(x)
        y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters()), *model.buffers()]


@needs_operator
@pytest.mark.parametrize("change", [freeze_gate_norms, lambda model: accept_single_values(model[0])])
def test_the_operator_gives_what_the_norms_give(change):
    model = attended()
    change(model)
    assert type(model[0].cbam.spatial_attention.norm) is not nn.BatchNorm2d
    assert route(model[0].cbam) == ("operator", "")
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 6, 5)
    for _ in range(2):  # the second call is a planned one
        torch.testing.assert_close(step(model, x, "auto"), step(plain, x, "eager"))
    one = x[:1, :, :1, :1]  # of which no batch has statistics
    torch.testing.assert_close(step(model, one, "auto"), step(plain, one, "eager"))
