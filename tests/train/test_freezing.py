from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam import CBAM, attach
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.train.freezing import Backbone


def test_classifier_and_attention_are_no_backbone():
    model = build_model("resnet20", 4)
    attach(model, preset="official", input_size=(3, 32, 32))
    backbone = Backbone(model)
    rest = {name for name, _ in model.named_parameters()} - backbone.names
    assert {name.partition(".")[0] if "cbam" not in name else "cbam" for name in rest} == {"fc", "cbam"}
    assert not any("cbam" in name for name in backbone.norms), "the norms of gates learn their statistics"
    assert "bn1" in backbone.norms
    assert len(backbone.parameters(model)) == len(backbone.names)


def test_only_the_backbone_s_norms_are_held():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), CBAM(16, preset="official"), nn.Flatten(), nn.Linear(16, 2)
    )
    backbone = Backbone(model)
    model.train()
    backbone.hold_statistics(model)
    gates = [module for module in model[2].modules() if isinstance(module, nn.BatchNorm2d)]
    assert gates
    assert all(module.training for module in gates)
    assert (model.training, model[1].training) == (True, False)


def test_a_network_without_a_classifier():
    with pytest.raises(CBAMError, match="no linear or convolutional layer as its classifier"):
        Backbone(nn.Sequential(nn.BatchNorm2d(3)))


def test_weights_that_classifier_and_backbone_share_learn():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)
            self.first.weight = self.fc.weight

        def forward(self, x):
            return self.fc(torch.relu(self.first(x)))

    assert Backbone(Tied()).names == {"first.bias"}
