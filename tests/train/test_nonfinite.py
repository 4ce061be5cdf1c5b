from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cbam.models import build_model
from cbam.train.nonfinite import first_nonfinite

IMAGES = torch.randn(4, 1, 8, 8)


@pytest.fixture
def model():
    return build_model("resnet20", 10, in_channels=1).train()


def test_names_the_module_with_the_bad_weight(model):
    model.layer2[1].conv2.weight.data[0, 0, 0, 0] = float("inf")
    assert first_nonfinite(model, IMAGES) == (
        "the first module whose output is not finite is 'layer2.1.conv2' (Conv2d); its own weight is not finite"
    )


def test_names_the_module_that_overflows_with_good_weights(model):
    model.layer3[0].conv1.weight.data.mul_(1e38)
    told = first_nonfinite(model, 1e3 * IMAGES)
    assert "'layer3.0." in told
    assert "weight" not in told


def test_bad_images_are_named_first(model):
    images = IMAGES.clone()
    images[2, 0, 3, 3] = float("nan")
    assert "images" in first_nonfinite(model, images)


def test_finite_everywhere(model):
    assert "loss itself" in first_nonfinite(model, IMAGES)


def test_the_model_itself_is_named_when_no_child_is_at_fault():
    class Divides(nn.Module):
        def forward(self, x):
            return x / 0

    assert "'the whole model' (Divides)" in first_nonfinite(Divides(), IMAGES)


def test_leaves_statistics_hooks_and_mode_alone(model):
    model.layer2[1].conv2.weight.data.fill_(float("nan"))
    before = copy.deepcopy(model.state_dict())
    first_nonfinite(model, IMAGES)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_looks_into_tuples_and_dictionaries():
    class Several(nn.Module):
        def forward(self, x):
            return {"fine": x, "bad": (x.long(), x * float("nan"))}

    assert "'0' (Several)" in first_nonfinite(nn.Sequential(Several()), IMAGES)
