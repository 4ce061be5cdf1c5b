"""Means, saturated and dead gates, against numbers counted by hand."""

import pytest
import torch
from torch import nn

from cbam import CBAM
from cbam.explain.gate_statistics import GateReader, describe


def test_gates_are_told_apart():
    sigmoid = torch.tensor([[0.5, 0.99, 0.2], [0.5, 0.96, 0.3]])
    assert describe(sigmoid) == pytest.approx(
        {"mean": 0.575, "saturated": 1 / 3, "dead": 1 / 3, "spread": (0 + 0.03 + 0.1) / 3}
    )


def test_a_row_for_each_block_and_the_hooks_are_gone():
    model = nn.Sequential(CBAM(8), nn.ReLU(), CBAM(8))
    reader = GateReader(model)
    model(torch.randn(2, 8, 5, 5))
    rows = reader.take()
    assert [sorted(row)[0] for row in rows] == ["channel dead", "channel dead"]
    model(torch.randn(2, 8, 5, 5))
    assert len(reader.found) == 2
