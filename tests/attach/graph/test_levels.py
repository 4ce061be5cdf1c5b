"""The levels of a network: its way from resolution to resolution."""

import pytest
import torch
from torch import nn

from cbam.attach.graph.levels import find_levels
from cbam.attach.graph.probe import run_probe
from tests.attach.networks import Block, Net
from tests.attach.unets import Context, Gate, SequenceUNet


def sizes(model, size=16):
    levels = find_levels(run_probe(model.eval(), (torch.rand(1, 3, size, size),)))
    return [(level.way[-1][0], level.behind_enlargement) for level in levels]


def test_encoder_and_decoder_of_a_unet():
    assert sizes(SequenceUNet()) == [(16, False), (8, False), (4, False), (8, True), (16, True)]


def test_a_network_at_one_resolution():
    assert sizes(Net(Block(8), Block(8))) == [(16, False)]


@pytest.mark.parametrize("part", [Gate(3), Context(3)], ids=["gate", "context"])
def test_what_only_makes_a_gate_or_pooled_context(part):
    assert sizes(nn.Sequential(part, nn.LazyConv2d(4, 3, padding=1))) == [(16, False)]


def test_attention_between_positions():
    """Its scores, 16 x 16, are no map, although the image has that size."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.conv = nn.Conv2d(3, 6, 3, 4, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            x = self.project(x)  # 4 x 4: 16 positions
            tokens = x.reshape(1, 2, 3, 16)
            scores = (tokens.transpose(2, 3) @ tokens).softmax(-1)
            return self.conv(x + (tokens @ scores).reshape(x.shape)).relu()

    assert sizes(Tokens()) == [(16, False), (4, False)]


def test_a_pyramid_of_tokens():
    class Stage(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.patches, self.linear = nn.Conv2d(inputs, 4, 2, 2), nn.Linear(4, 4)

        def forward(self, x):
            x = self.patches(x)
            return self.linear(x.flatten(2).mT).mT.reshape(x.shape)

    assert sizes(nn.Sequential(Stage(3), Stage(4))) == [(16, False), (8, False), (4, False)]


def test_a_neck_that_comes_down_again():
    class Neck(SequenceUNet):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(2, 2, 3, 2, 1)

        def forward(self, x):
            return self.down(super().forward(x).relu())

    assert sizes(Neck())[3:] == [(8, True), (16, True), (8, True)]
